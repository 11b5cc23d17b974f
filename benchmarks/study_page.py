"""docs/studies.md: the tables and figures of the paper, how to make each, and what came of it here.

    python benchmarks/study_page.py > docs/studies.md

Rows are those in `results/studies/`: NAME.jsonl is the `rows.jsonl` that `study.py studies/NAME` left.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from study import published, table

from owl_compress.documents.comparison import read_rows

_HERE = Path(__file__).parent
_ROWS = _HERE / "results" / "studies"
_WIDTH = 120
_LLAMA = "huggyllama/llama-7b"
_BESIDE = "LLaMA-7B"
_STUDIES = (
    "methods", "granularity", "allocators", "zero_shot", "time", "nm", "structured", "bits", "per_linear",
    "sweep", "curves",
)  # fmt: skip
_OF_SECONDS = "time"
_PICTURES = {
    "curves": ("figure2.png", "Perplexity of the embedded model against sparsity, uniform and with OWL"),
    "granularity": ("table3.png", "Perplexity of the embedded model against sparsity, by comparison group"),
    "allocators": ("table4.png", "Perplexity of the embedded model against sparsity, by allocator"),
}
"""What `owl-compress chart` made of the rows, and what is to be seen on it."""
_NO_ROWS = "No rows of the embedded model are committed yet."
_INSTEAD = {
    "zero_shot": "The seven tasks come from a hub. What the embedded model does on the first questions of "
    "three of them, kept as files, is in [Measured](measured.md#accuracy-on-tasks)."
}
"""What stands in the place of rows that there are none of."""
_NOTES = {
    "time": "One thread, while other work ran on the machine. Importance is measured once for all cells, and "
    "counts in the first that needs it: the second with OWL found it there."
}
"""What is said of rows before they come."""
_INTRODUCTION = (
    "The tables and figures of the paper (OWL, arXiv 2310.05175) as grids of `owl-compress compare` "
    "([Comparing](compare.md)), on any model. A grid in `benchmarks/studies/` says what is compared; what it "
    "is carried out on is a protocol in `benchmarks/protocols/`: `paper` (128 sequences of C4, WikiText-2, "
    "windows of 2048 tokens), or `embedded` for the embedded model on a CPU (12 windows of 512 tokens of one "
    "text, 20 of another; with the validation and the test split of WikiText-2 as `validation.txt` and "
    "`test.txt`). `study.py` puts the two together, carries them out, and prints our figures beside the "
    "published ones, as far as these are known for certain: those of the authors' README and of Tables 13 "
    f"and 14, kept in `benchmarks/published/owl.json`. Published figures are of {_BESIDE}: figures of "
    "another model compare in their order at most. Tables were made by several versions, whose sums round "
    "differently: which of two nearly equal weights goes is chance then, and a cell of two tables may "
    "have two figures (uniform Wanda at 70 % lies anywhere from 698 to 869, see [Measured](measured.md)). "
    "Compare within a table. Another model takes the protocol `paper`, or another by `--protocol`, and "
    "`--set seq-len=512` where it has fewer positions. This page is made from the committed rows by "
    "`python benchmarks/study_page.py`."
)
_FIGURE_1 = f"""## Figure 1: outliers of each block, and what it keeps

![Share of outliers in each block of the embedded model, and what OWL keeps of it at 70 %](figure1.png)

```sh
owl-compress run builtin --allocator owl --metric lod@5 --lam 0.08 --sparsity 0.7 --backend wanda \\
    --calib validation.txt --samples 12 --sampling first --seq-len 512 -o OUT
owl-compress chart OUT -o figure1.png
owl-compress run {_LLAMA} --allocator owl --metric lod@5 --lam 0.08 --sparsity 0.7 --backend wanda -o OUT2
owl-compress chart OUT2 -o figure1.png
```
"""
_LOD = f"""## Table 2: outliers before and after pruning

Share of outliers in percent, mean over the blocks, held against the mean score of the pruned model itself and
against that of the dense one.

```sh
python benchmarks/lod.py --calib validation.txt > lod.jsonl
python benchmarks/lod.py --model {_LLAMA} --calib c4 --samples 128 --seq-len 2048 --sampling random
```
"""


def main() -> None:
    """Print the page."""
    print(f"# Studies of the paper\n\n{fill(_INTRODUCTION, _WIDTH)}\n")
    print("\n".join(_sections()).rstrip())


def _sections() -> Iterator[str]:
    yield _study(_STUDIES[0])
    yield _LOD + _lod()
    for name in _STUDIES[1:]:
        yield _study(name)
    yield _FIGURE_1


def _study(name: str) -> str:
    comment = (_HERE / "studies" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    title = comment.removeprefix("# ").rstrip(".")
    lines = [
        f"## {title}", "",
        "```sh",
        f"python benchmarks/study.py studies/{name} --calib validation.txt --data test.txt -o RESULTS",
        f"python benchmarks/study.py studies/{name} --model {_LLAMA} -o RESULTS",
        *([f"owl-compress chart RESULTS -o {_PICTURES[name][0]}"] if name in _PICTURES else []),
        "```", "",
    ]  # fmt: skip
    path = _ROWS / f"{name}.jsonl"
    if path.is_file():
        if name in _NOTES:
            lines += [fill(_NOTES[name], _WIDTH), ""]
        if name in _PICTURES:
            file, seen = _PICTURES[name]
            lines += [f"![{seen}]({file})", ""]
        seconds = name == _OF_SECONDS
        lines += [table(read_rows(path), published(name, _BESIDE), _BESIDE, with_seconds=seconds), ""]
    else:
        lines += [fill(_INSTEAD.get(name, _NO_ROWS), _WIDTH), ""]
    return "\n".join(lines)


def _lod() -> str:
    path = _ROWS / "lod.jsonl"
    if not path.is_file():
        return f"\n{_NO_ROWS}\n"
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    columns = [(whose, m) for whose in ("own_mean", "dense_mean") for m in rows[0][whose]]
    heads = ["", *(f"M = {m}, {whose.replace('_mean', '')} mean" for whose, m in columns)]
    cells = [[row["name"], *(f"{row[whose][m]:.3f}" for whose, m in columns)] for row in rows]
    return "\n" + _markdown([heads, ["---", *["---:"] * len(columns)], *cells]) + "\n"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
