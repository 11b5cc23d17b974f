"""The page of a comparison: which method is best at which budget, by how much, and how it was made."""

from collections import Counter
from collections.abc import Sequence

from owl_compress.documents.comparison import Row, Status
from owl_compress.errors import RequestError
from owl_compress.pages.comparison_pictures import (
    budgets_pictures,
    quality_pictures,
    size_picture,
    time_picture,
)
from owl_compress.pages.comparison_sheets import left_out_table, methods_table, rows_table
from owl_compress.pages.making import versions_in_words
from owl_compress.pages.page import Code, Facts, KeyFigure, Page, Part, Prose, Section, render
from owl_compress.pages.seeds import Figure, Method, figures_of, methods_of
from owl_compress.pages.words import (
    figure_in_words,
    perplexity_in_words,
    seconds_in_words,
    short_name,
    windows_in_words,
)

_MOST_TOLD = 3


def comparison_page(rows: Sequence[Row], baseline: str = "uniform", grid: str | None = None) -> str:
    """The HTML of the page; `grid` is the file that asked for it, as it is written.

    Raises:
        RequestError: there are no rows.
    """
    if not rows:
        raise RequestError("the comparison has no rows yet: run it first")
    pictures = [size_picture(rows, baseline), time_picture(rows, baseline)]
    return render(
        Page(
            kicker="owl-compress · comparison",
            title=_title(rows),
            summary=_summary(rows, baseline),
            figures=_key_figures(rows),
            sections=[
                Section("quality", "Quality against budget", quality_pictures(rows, baseline)),
                Section("methods", "Methods", _methods(rows, baseline)),
                Section("budgets", "What each block keeps", budgets_pictures(rows, baseline)),
                Section("sizes", "Sizes and times", [one for one in pictures if one]),
                Section("cells", "Every cell", [rows_table(rows)]),
                Section("left", "Refused, failed or drifted", _left_out(rows)),
                Section("made", "How it was made", _made(rows, grid)),
            ],
        )
    )


def _models(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(short_name(str(row.recipe["model"])) for row in rows if "model" in row.recipe))


def _title(rows: Sequence[Row]) -> str:
    models = _models(rows)
    n_cells = sum(not row.dense for row in rows)
    cells = f"{n_cells} compressed model{'s' * (n_cells != 1)} compared"
    return f"{models[0]}: {cells}" if len(models) == 1 else f"{cells}, of {len(models)} models"


def _summary(rows: Sequence[Row], baseline: str) -> str:
    """Which method is best, group by group, and whether the lead is larger than what seeds do."""
    figures = figures_of(rows)
    methods = methods_of([row for row in rows if not row.dense], baseline)
    if not figures or not methods:
        return "Nothing was measured yet."
    figure = figures[0]
    groups: dict[str, list[Method]] = {}
    for method in methods:
        if figure.name in method.spreads:
            groups.setdefault(method.group, []).append(method)
    compared = {group: members for group, members in groups.items() if len(members) > 1}
    best = {group: _best(members, figure) for group, members in (compared or groups).items()}
    if len(best) <= _MOST_TOLD:
        told = [f"{group}: {_lead(one, figure, baseline)}." for group, one in best.items()]
        return f"Best by {figure.name}. {' '.join(told)}"
    counts = Counter(one.name for one in best.values())
    firsts = ", ".join(f"{name} in {count}" for name, count in counts.most_common(4))
    group, widest = max(best.items(), key=lambda pair: _difference(pair[1], figure))
    lead = _lead(widest, figure, baseline)
    return f"Best by {figure.name} in {len(best)} groups: {firsts}. For one, {group}: {lead}."


def _best(methods: Sequence[Method], figure: Figure) -> Method:
    sign = -1 if figure.is_larger_better else 1
    return min(methods, key=lambda method: sign * method.spreads[figure.name].mean)


def _difference(method: Method, figure: Figure) -> float:
    """How far a method is from the baseline; 0 where it is not known to be more than seeds do."""
    paired = method.against.get(figure.name)
    return abs(paired.difference) if paired and paired.is_told_apart else 0.0


def _lead(method: Method, figure: Figure, baseline: str) -> str:
    value = figure_in_words(method.spreads[figure.name].mean)
    paired = method.against.get(figure.name)
    if paired is None:
        return f"{method.name} with {value}"
    difference = f"{100 * paired.difference:+.1f} %" if figure.is_ratio else f"{paired.difference:+.3g}"
    known = {None: "one seed", True: "more than seeds do", False: "no more than seeds do"}
    return f"{method.name} with {value}, {difference} against {baseline} ({known[paired.is_told_apart]})"


def _key_figures(rows: Sequence[Row]) -> list[KeyFigure]:
    counts = {status: sum(row.status is status for row in rows) for status in Status}
    others = ", ".join(f"{count} {status}" for status, count in counts.items() if count and status != "done")
    figures = [KeyFigure("cells done", f"{counts[Status.DONE]}", others or "none left out")]
    dense = next((row for row in rows if row.dense and row.is_measured), None)
    if dense:
        figures += [
            KeyFigure(f"perplexity, {short_name(name)}", perplexity_in_words(one.perplexity), "dense")
            for name, one in list(dense.perplexity.items())[:2]
        ]
    seeds = {row.recipe["seed"] for row in rows if "seed" in row.recipe and not row.dense}
    figures.append(KeyFigure("seeds", f"{len(seeds)}"))
    figures.append(
        KeyFigure("time", seconds_in_words(sum(row.seconds.get("total", 0) for row in rows)), "all cells")
    )
    return figures


def _methods(rows: Sequence[Row], baseline: str) -> list[Part]:
    table = methods_table(rows, baseline)
    if table is None:
        return []
    return [
        Prose(
            f"Means over seeds with their standard deviation. Differences are from {baseline} in the same "
            "group, in pairs of equal seeds: for perplexity in percent. In brackets is Student's 95 % "
            "interval; where it holds zero, the difference is no more than seeds do."
        ),
        table,
    ]


def _left_out(rows: Sequence[Row]) -> list[Part]:
    table = left_out_table(rows)
    return [table] if table else []


def _seen_by(some: Sequence[Row], rows: Sequence[Row], *, is_drawn: bool) -> str:
    """What tells the rows that saw one selection of a text from those that saw another."""
    models, seeds = (
        ", ".join(dict.fromkeys(map(str, values)))
        for values in ([row.recipe.get("model") for row in some], [row.seed for row in some])
    )
    several = len({str(row.recipe.get("model")) for row in rows}) > 1
    return (f" for {models}" if several else "") + (f" by seed {seeds}" if is_drawn else "")


def _made(rows: Sequence[Row], grid: str | None) -> list[Part]:
    facts: dict[str, dict[str, None]] = {}
    texts: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        made = row.provenance
        facts.setdefault("command", {})[made.command] = None
        facts.setdefault("versions", {})[versions_in_words(made.versions)] = None
        facts.setdefault("machine", {})[
            ", ".join(f"{name} {value}" for name, value in made.machine.items())
        ] = None
        for text, digest in made.texts.items():
            texts.setdefault((text, digest), []).append(row)
        for name, record in row.perplexity.items():
            facts.setdefault(f"perplexity {name}", {})[windows_in_words(record)] = None
    pairs = [(name, value) for name, values in facts.items() for value in values]
    several = {text for text, _ in texts if sum(text == other for other, _ in texts) > 1}
    for (text, digest), seen_by in texts.items():
        whose = _seen_by(seen_by, rows, is_drawn=text == "calib") if text in several else ""
        pairs.append((f"tokens of {text}{whose}, sha256", digest))
    parts: list[Part] = [Facts(pairs)]
    if grid:
        parts += [Prose("The grid:"), Code(grid.strip())]
    return parts
