"""A grid of this folder carried out on any model, and our figures beside the published ones.

    python benchmarks/study.py studies/methods --calib validation.txt --data test.txt -o RESULTS
    python benchmarks/study.py studies/methods --model huggyllama/llama-7b -o RESULTS
    python benchmarks/study.py studies/methods --show RESULTS

Grids say what is compared; what they are carried out on is in `protocols/`: by default `embedded` for the
embedded model, `paper` for all others. `--set KEY=VALUE` changes one line. The grid as it is carried out lies
beside the results, and `owl-compress compare RESULTS.yaml -o RESULTS` does the same.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from os.path import normpath
from pathlib import Path
from typing import Any

import yaml

from owl_compress.documents.comparison import Row, read_results
from owl_compress.pages.seeds import figures_of

_HERE = Path(__file__).parent
_EMBEDDED = "builtin"
_PROGRAM = (sys.executable, "-m", "owl_compress")


def main() -> int:
    """Carry a grid out, or only show what came of one."""
    arguments = _arguments()
    if arguments.show is None:
        grid = Path(f"{arguments.out}.yaml")
        content = content_of(arguments.grid, arguments.model, _given(arguments), arguments.protocol)
        grid.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        command = ["compare", str(grid), "-o", str(arguments.out), *["--dry-run"] * arguments.dry_run]
        code = subprocess.run([*_PROGRAM, *command], check=False).returncode
        if code or arguments.dry_run:
            return code
    rows = read_results(arguments.show or arguments.out)
    print(table(rows, published(Path(arguments.grid).name, arguments.published), arguments.published))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("grid", help="studies/NAME or grids/NAME")
    parser.add_argument("--model", default=_EMBEDDED)
    parser.add_argument("--protocol", choices=[path.stem for path in (_HERE / "protocols").glob("*.yaml")])
    parser.add_argument("--calib", help="in the place of the protocol's text")
    parser.add_argument("--data", help="in the place of the protocol's text")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--published", default="LLaMA-7B", help="whose published figures stand beside ours")
    parser.add_argument("--dry-run", action="store_true")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("-o", "--out", type=Path)
    where.add_argument("--show", type=Path, help="a folder of results that is there already")
    return parser.parse_args()


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    texts = {"calib": arguments.calib, "data": arguments.data}
    given: dict[str, Any] = {name: normpath(text) for name, text in texts.items() if text is not None}
    for pair in arguments.set:
        name, _, value = pair.partition("=")
        given[name] = yaml.safe_load(value)
    return given


def content_of(
    name: str, model: str, given: Mapping[str, Any], protocol: str | None = None
) -> dict[str, Any]:
    """The grid called `name` on `model`, by a protocol, with what is `given` in the place of its lines."""
    protocol = protocol or ("embedded" if model == _EMBEDDED else "paper")
    content = {"model": model, **_read(f"protocols/{protocol}"), **_read(name)}
    if given:
        content.pop("protocol", None)  # it is another one then
    return content | dict(given)


def _read(name: str) -> dict[str, Any]:
    text = (_HERE / f"{name.removesuffix('.yaml')}.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def published(study: str, model: str) -> list[tuple[Mapping[str, Any], float]]:
    """What cells of a study have in common with published ones, and the perplexity there."""
    content = json.loads((_HERE / "published" / "owl.json").read_text(encoding="utf-8"))
    return [
        (one["cell"], one["perplexity"][model])
        for one in content["figures"]
        if one["study"] == study.removesuffix(".yaml") and model in one["perplexity"]
    ]


def table(
    rows: Sequence[Row],
    beside: Sequence[tuple[Mapping[str, Any], float]],
    model: str,
    *,
    with_seconds: bool = True,
) -> str:
    """The rows with all that was measured of them, the seconds that they took, and what was published."""
    figures = figures_of(rows)
    stages = dict.fromkeys(stage for row in rows for stage in row.seconds) if with_seconds else {}
    heads = ["", "kept", *(one.name for one in figures), *(f"{stage}, s" for stage in stages)]
    lines = [[*heads, *([f"perplexity of {model}, published"] if beside else [])]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for row in rows:
        cells = [row.name, _number(row.achieved), *(_number(one.read(row)) for one in figures)]
        cells += [_number(row.seconds.get(stage)) for stage in stages]
        if beside:
            found = [value for cell, value in beside if is_cell(row, cell)]
            cells.append(f"{found[0]:,}" if found else "")
        lines.append(cells if row.reason is None else [row.name, row.reason, *[""] * (len(lines[0]) - 2)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def is_cell(row: Row, cell: Mapping[str, Any]) -> bool:
    """Whether a row is what a published figure is of."""
    known = {"dense": row.dense, **row.recipe}
    return row.dense == cell.get("dense", False) and all(
        known.get(name) == value for name, value in cell.items()
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


if __name__ == "__main__":
    sys.exit(main())
