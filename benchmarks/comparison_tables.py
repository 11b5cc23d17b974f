"""Tables of rows as `owl-compress compare` wrote them: draws of the calibration windows, and accuracy."""

from collections.abc import Iterable, Sequence
from math import sqrt
from statistics import mean

from layout import number, section, several, table

from owl_compress.documents.comparison import Row
from owl_compress.documents.labels import label
from owl_compress.pages.seeds import SEED, Figure, Method, figures_of, methods_of

_DRAWS = (
    "Perplexity at equal budgets over draws of the calibration windows, 12 of 512 tokens at random from the "
    "validation text: mean and range, of the draws in *seeds*; what has no range is of the first. OWL with "
    "what was chosen on text that is not evaluated on (see the grid). A star: the ratio to uniform budgets, "
    "in pairs of equal draws, is told from 1 by its 95 % interval. (`grids/readme.yaml`)"
)
_ACCURACY = (
    "Share of right answers, plus or minus one standard error, on the first questions of each task as they "
    "lie in a file of questions, choices and labels, without examples before them; *mean* over the tasks. "
    "Perplexity is of the same run, on the first calibration windows; where the tables above have another "
    "for the same cell, that is chance ([Unstructured sparsity](#unstructured-sparsity) has its range). "
    "Profiles are those of `sensitivity.py`. (`grids/accuracy.yaml`)"
)


_PAIRS = (
    "Mean and range over draws of the calibration windows, 12 of 512 tokens. *Ratio*: over sequential, in "
    "pairs of equal draws; a star where its 95 % interval tells it from 1."
)
_SOURCES = {
    "dense": (
        "Statistics of the dense model",
        "Perplexity where the backend is told of the inputs of each block behind the compressed ones before "
        "it (sequential), and of the dense model's (dense), which one pass over the blocks gathers together "
        f"with importance. {_PAIRS} Widths are pruned without repair, which needs more than norms. "
        "(`grids/statistics.yaml`; the sequential rows of wanda are those of `grids/readme.yaml`)",
    ),
    "true-sequential": (
        "Linears in turn",
        "Perplexity where the backend is told of the inputs of each block behind the compressed ones before "
        "it (sequential), and where linears of a block are compressed in turn, each on inputs behind the "
        f"compressed ones before it (true-sequential). {_PAIRS} (`grids/turns.yaml`; sequential rows are "
        "those of `grids/readme.yaml`, but for 4 bits)",
    ),
}
"""Whose inputs a backend may be told of besides those behind compressed blocks: heading and text."""


def draws_section(rows: Sequence[Row]) -> str:
    """Groups of equal budgets down, allocators across."""
    if not rows:
        return ""
    figure = figures_of(rows)[0]
    methods = methods_of([row for row in rows if not row.dense])
    allocators = list(dict.fromkeys(map(_allocator, methods)))
    groups: dict[str, dict[str, Method]] = {}
    for method in methods:
        groups.setdefault(method.group, {})[_allocator(method)] = method
    cells = [
        (
            group,
            ", ".join(map(str, _seeds(own.values()))),
            *(_draws(own.get(allocator), figure) for allocator in allocators),
        )
        for group, own in groups.items()
    ]
    heads = ("", "seeds", *allocators)
    return section("Draws of the calibration windows", _DRAWS, table(heads, cells))


def _allocator(method: Method) -> str:
    return str(method.rows[0].recipe["allocator"])


def _seeds(methods: Iterable[Method]) -> list[int]:
    return sorted({row.recipe.get(SEED, 0) for method in methods for row in method.rows})


def _draws(method: Method | None, figure: Figure) -> str:
    if method is None:
        return "–"
    values = [value for row in method.rows if (value := figure.read(row)) is not None]
    paired = method.against.get(figure.name)
    return several(values) + ("*" if paired and paired.is_told_apart else "")


def source_section(source: str, *studies: Sequence[Row]) -> str:
    """Backend, budget and allocator down; sequential statistics, and those of the `source`, across."""
    rows = [row for study in studies for row in study if row.is_measured and not row.dense]
    if not any(_source(row) == source for row in rows):
        return ""
    figure = figures_of(rows)[0]
    by_source: dict[str, dict[bool, dict[int, float]]] = {}
    for row in rows:
        value = figure.read(row)
        if value is not None and _source(row) in ("sequential", source):
            found = by_source.setdefault(_apart_from_source(row), {True: {}, False: {}})
            found[_source(row) == source][row.recipe.get(SEED, 0)] = value
    cells = []
    for name, found in sorted(by_source.items(), reverse=True):
        paired = figure.compared(found[True], found[False])
        if paired is not None:
            ratio = f"{1 + paired.difference:.3f}" + "*" * bool(paired.is_told_apart)
            cells.append((name, several([*found[False].values()]), several([*found[True].values()]), ratio))
    title, text = _SOURCES[source]
    return section(title, text, table(("", "sequential", source, "ratio"), cells))


def _source(row: Row) -> str:
    """Whose inputs the backend was told of; the grids' protocol has sequential where a row does not say."""
    return str(row.recipe.get("statistics") or "sequential")


_BUDGETS = {"sparsity", "nm", "prune-ratio", "bits", "bit-choices"}


def _apart_from_source(row: Row) -> str:
    """The cell in words, but for the seed and whose inputs the backend was told of."""
    axes = {name: value for name, value in row.recipe.items() if name in _BUDGETS}
    repaired = " with repair" if row.recipe.get("repair") else ""
    return f"{row.recipe['backend']} {label(axes)}{repaired}, {row.recipe['allocator']}"


def accuracy_section(rows: Sequence[Row]) -> str:
    """Models down, tasks across."""
    measured = [row for row in rows if row.is_measured and row.tasks]
    groups = list(dict.fromkeys(row.group for row in measured))
    measured.sort(key=lambda row: groups.index(row.group))
    if not measured:
        return ""
    tasks = measured[0].tasks  # of all of them alike, as a grid says them once
    cells = [
        (
            "dense" if row.dense else f"{row.group}, {row.recipe['allocator']}",
            number(next(iter(row.perplexity.values())).perplexity),
            *(_share(row.tasks[task].value, row.tasks[task].stderr) for task in tasks),
            _mean_share(row),
        )
        for row in measured
    ]
    chances = [one.chance for one in tasks.values() if one.chance is not None]
    if len(chances) == len(tasks):
        cells.append(("a guess", "", *(f"{chance:.3f}" for chance in chances), f"{mean(chances):.3f}"))
    heads = ("", "perplexity", *(f"{name} ({one.samples})" for name, one in tasks.items()), "mean")
    return section("Accuracy on tasks", _ACCURACY, table(heads, cells))


def _share(value: float, stderr: float | None) -> str:
    return f"{value:.3f} ± {stderr:.3f}" if stderr is not None else f"{value:.3f}"


def _mean_share(row: Row) -> str:
    """The mean over tasks; the standard error as of independent ones."""
    errors = [one.stderr for one in row.tasks.values()]
    values = [one.value for one in row.tasks.values()]
    if any(error is None for error in errors):
        return f"{mean(values):.3f}"
    return _share(mean(values), sqrt(sum(error**2 for error in errors if error is not None)) / len(errors))
