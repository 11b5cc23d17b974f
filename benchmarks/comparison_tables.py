"""Tables of rows as `owl-compress compare` wrote them: draws of the calibration windows, and accuracy."""

from collections.abc import Sequence
from math import sqrt
from statistics import mean

from layout import number, section, several, table

from owl_compress.documents.comparison import Row
from owl_compress.pages.seeds import SEED, Method, figures_of, methods_of

_DRAWS = (
    "Perplexity at equal budgets over draws of the calibration windows, 12 of 512 tokens at random from the "
    "validation text: mean and range, of the draws in *seeds*; what has no range is of the first. OWL with "
    "what was chosen on text that is not evaluated on (see the grid). A star: the ratio to uniform budgets, "
    "in pairs of equal draws, is told from 1 by its 95 % interval. (`grids/readme.yaml`)"
)
_ACCURACY = (
    "Share of right answers, plus or minus one standard error, on the first questions of each task as they "
    "lie in a file of questions, choices and labels, without examples before them; *mean* over the tasks. "
    "Perplexity is that of the tables above, on the first calibration windows, and profiles are those of "
    "`sensitivity.py`. (`grids/accuracy.yaml`)"
)


def draws_section(rows: Sequence[Row]) -> str:
    """Groups of equal budgets down, allocators across."""
    methods = methods_of([row for row in rows if not row.dense])
    allocators = list(dict.fromkeys(map(_allocator, methods)))
    groups: dict[str, dict[str, Method]] = {}
    for method in methods:
        groups.setdefault(method.group, {})[_allocator(method)] = method
    cells = [
        (
            group,
            ", ".join(
                map(str, sorted({row.recipe.get(SEED, 0) for one in own.values() for row in one.rows}))
            ),
            *(_draws(own.get(allocator), rows) for allocator in allocators),
        )
        for group, own in groups.items()
    ]
    heads = ("", "seeds", *allocators)
    return section("Draws of the calibration windows", _DRAWS, table(heads, cells)) if cells else ""


def _allocator(method: Method) -> str:
    return str(method.rows[0].recipe["allocator"])


def _draws(method: Method | None, rows: Sequence[Row]) -> str:
    if method is None:
        return "–"
    figure = figures_of(rows)[0]
    values = [value for row in method.rows if (value := figure.read(row)) is not None]
    paired = method.against.get(figure.name)
    return several(values) + ("*" if paired and paired.is_told_apart else "")


def accuracy_section(rows: Sequence[Row]) -> str:
    """Models down, tasks across."""
    measured = [row for row in rows if row.is_measured and row.tasks]
    groups = list(dict.fromkeys(row.group for row in measured))
    measured.sort(key=lambda row: groups.index(row.group))
    tasks = list(dict.fromkeys(task for row in measured for task in row.tasks))
    samples = {task: next(row.tasks[task].samples for row in measured if task in row.tasks) for task in tasks}
    guesses = {task: next(row.tasks[task].chance for row in measured if task in row.tasks) for task in tasks}
    cells = [
        (
            "dense" if row.dense else f"{row.group}, {row.recipe['allocator']}",
            number(next(iter(row.perplexity.values())).perplexity),
            *(_share(row.tasks[task].value, row.tasks[task].stderr) for task in tasks),
            _mean_share(row),
        )
        for row in measured
    ]
    chances = [guess for guess in guesses.values() if guess is not None]
    if cells and len(chances) == len(tasks):
        cells.append(("a guess", "", *(f"{chance:.3f}" for chance in chances), f"{mean(chances):.3f}"))
    heads = ("", "perplexity", *(f"{task} ({samples[task]})" for task in tasks), "mean")
    return section("Accuracy on tasks", _ACCURACY, table(heads, cells)) if cells else ""


def _share(value: float, stderr: float | None) -> str:
    return f"{value:.3f} ± {stderr:.3f}" if stderr is not None else f"{value:.3f}"


def _mean_share(row: Row) -> str:
    """The mean over tasks; the standard error as of independent ones."""
    errors = [one.stderr for one in row.tasks.values()]
    values = [one.value for one in row.tasks.values()]
    if any(error is None for error in errors):
        return f"{mean(values):.3f}"
    return _share(mean(values), sqrt(sum(error**2 for error in errors if error is not None)) / len(errors))
