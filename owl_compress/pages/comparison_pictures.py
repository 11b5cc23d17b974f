"""The pictures of a comparison, each with words for whoever does not see it."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from owl_compress.documents.comparison import Row
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError, nearest
from owl_compress.pages.cost_chart import Priced, size_figure, time_figure
from owl_compress.pages.drawing import KEPT_WORDS, Array
from owl_compress.pages.families import Curve, Family, families_of
from owl_compress.pages.linears_chart import Series, linears_figure
from owl_compress.pages.page import Picture
from owl_compress.pages.quality_chart import curves_figure, looks_of, ranking_figure
from owl_compress.pages.seeds import Figure, Method, figures_of, methods_of
from owl_compress.pages.words import figure_in_words

_MOST_PANELS = 12
"""Groups whose budgets are drawn block by block."""

_MOST_TIMED = 16
"""Methods of groups whose times are drawn one by one."""

_TOTAL = "total"


def quality_pictures(rows: Sequence[Row], baseline: str) -> list[Picture]:
    """Every figure against the budget; the methods side by side where there is but one budget."""
    return [picture for figure in figures_of(rows) for picture in _of_figure(rows, figure, baseline)]


def quality_picture(rows: Sequence[Row], baseline: str, asked: str | None = None) -> Picture:
    """The figure that is `asked` for, or the first, against the budget.

    Where families of several budgets stand beside families of one, it is of the former.

    Raises:
        RequestError: nothing was measured of any compressed model, or not that figure.
    """
    known = {one.name: one for one in figures_of(rows)}
    if asked is not None and asked not in known:
        raise RequestError(f"the rows have no figure {asked!r}: {nearest(asked, known)}")
    for name in known if asked is None else (asked,):
        for picture in _of_figure(rows, known[name], baseline):
            return picture
    raise RequestError("no compressed model was measured yet: there is nothing to draw")


def _of_figure(rows: Sequence[Row], figure: Figure, baseline: str) -> Iterator[Picture]:
    larger = figure.is_larger_better
    families = families_of(rows, figure, baseline)
    looks = looks_of(families, larger_is_better=larger)
    lines = [family for family in families if len(family.budgets) > 1]
    single = [family for family in families if len(family.budgets) == 1]
    better = "Higher is better." if larger else "Lower is better."
    if lines:
        yield Picture(
            f"{figure.name} against budget, by method",
            " ".join(_curve_in_words(curve, family) for family in lines for curve in family.curves),
            f"{better} A line is the mean over seeds, its band reaches from the least to the largest. "
            f"{_dashed(lines, baseline)}Dotted: the dense model.{_of_single_seeds(lines, figure)}",
            lambda width: curves_figure(lines, figure.name, looks, width, is_ratio=figure.is_ratio),
        )
    if single:
        yield Picture(
            f"{figure.name} of each method",
            " ".join(_curve_in_words(curve, family) for family in single for curve in family.curves),
            f"{better} A mark is the mean over seeds, its line reaches from the least to the largest; the "
            f"best on top. {_dashed(single, baseline)}{_of_single_seeds(single, figure)}".rstrip(),
            lambda width: ranking_figure(single, figure.name, looks, width, larger_is_better=larger),
        )


def _dashed(families: Sequence[Family], baseline: str) -> str:
    is_drawn = any(curve.is_baseline for family in families for curve in family.curves)
    return f"Dashed: {baseline}. " if is_drawn else ""


def _of_single_seeds(families: Sequence[Family], figure: Figure) -> str:
    points = [point for family in families for curve in family.curves for point in curve.points]
    if figure.is_larger_better and any(point.n_seeds == 1 and point.high > point.low for point in points):
        return " Of a single seed, one standard error over the questions to both sides."
    return ""


def _curve_in_words(curve: Curve, family: Family) -> str:
    told = (
        f"{figure_in_words(point.mean)} at {family.shown.get(point.budget, f'{point.budget:g}')}"
        for point in curve.points
    )
    return f"{curve.method}, {family.name}, by {family.axis}: {', '.join(told)}."


def budgets_pictures(rows: Sequence[Row], baseline: str) -> list[Picture]:
    """What each block keeps by each method, a panel for each group; a picture for each kind of budget."""
    found = methods_of([row for row in rows if not row.dense], baseline)
    uneven = {one.group for one in found if len(set(one.rows[0].budgets.values())) > 1}
    methods = [one for one in found if one.group in uneven]  # of the others there is nothing to be seen
    kinds = dict.fromkeys(method.rows[0].unit for method in methods)
    return [_budgets(kind, [one for one in methods if one.rows[0].unit is kind]) for kind in kinds if kind]


def _budgets(unit: Unit, methods: Sequence[Method]) -> Picture:
    groups = list(dict.fromkeys(method.group for method in methods))[:_MOST_PANELS]
    shown = [method for method in methods if method.group in groups]
    blocks = list(dict.fromkeys(name for method in shown for name in method.rows[0].budgets))
    series = [
        Series(
            name,
            {one.group: _kept(one, blocks) for one in shown if one.name == name},
            is_quiet=any(one.is_baseline for one in shown if one.name == name),
        )
        for name in dict.fromkeys(method.name for method in shown)
    ]
    return Picture(
        "Budget of each block by method",
        " ".join(_budgets_in_words(one) for one in shown),
        "A panel for each group, all on one scale; higher keeps more. Where a method depends on the seed, it "
        "is that of the first.",
        lambda width: linears_figure(
            series, blocks, f"Budget of each block: {KEPT_WORDS[unit]}", width, bars=False
        ),
    )


def _kept(method: Method, blocks: Sequence[str]) -> Array:
    row = method.rows[0]
    scale = 1.0 if row.unit is Unit.BITS else 100.0
    return np.array([scale * row.budgets.get(name, np.nan) for name in blocks])


def _budgets_in_words(method: Method) -> str:
    budgets = method.rows[0].budgets
    low, high = min(budgets, key=budgets.__getitem__), max(budgets, key=budgets.__getitem__)
    return (
        f"{method.name}, {method.group}: from {budgets[low]:.4g} in {low} to {budgets[high]:.4g} in {high}."
    )


def size_picture(rows: Sequence[Row], baseline: str) -> Picture | None:
    """The first figure against size; None where all are of one size, as with zeros that are stored."""
    figures = figures_of(rows)
    methods = methods_of([row for row in rows if not row.dense], baseline)
    if not figures:
        return None
    figure = figures[0]
    priced = [
        Priced(_kind(row), row.bytes_on_disk / 1e6, method.spreads[figure.name].mean)
        for method in methods
        if figure.name in method.spreads and (row := method.rows[0]).bytes_on_disk is not None
    ]
    if len({round(one.size, 3) for one in priced}) < 2:
        return None
    return Picture(
        f"{figure.name} against size on disk",
        " ".join(f"{one.kind}: {one.size:.4g} MB, {figure_in_words(one.quality)}." for one in priced),
        "A mark for each method at each budget. Size: the weight files, in megabytes.",
        lambda width: size_figure(priced, "MB on disk", figure.name, width),
    )


def _kind(row: Row) -> str:
    """What is drawn alike: the backend, and whether in a pattern."""
    return f"{row.recipe.get('backend')}{' N:M' if 'nm' in row.recipe else ''}"


def time_picture(rows: Sequence[Row], baseline: str) -> Picture | None:
    """Where the time of each method went."""
    methods = methods_of([row for row in rows if not row.dense], baseline)
    seconds = {f"{one.name}, {one.group}": _stages(one.rows) for one in methods}
    told = "mean over seeds"
    if len(seconds) > _MOST_TIMED:
        names = dict.fromkeys(method.name for method in methods)
        seconds = {
            name: _stages([row for one in methods if one.name == name for row in one.rows]) for name in names
        }
        told = "mean over seeds and groups"
    seconds = {name: row for name, row in seconds.items() if row}
    if not seconds:
        return None
    return Picture(
        "Seconds of a cell, by stage",
        " ".join(f"{name}: {sum(row.values()):.3g} s." for name, row in seconds.items()),
        "What cells share, such as importance, counts in the cell that measured it.",
        lambda width: time_figure(seconds, told, width),
    )


def _stages(rows: Sequence[Row]) -> Mapping[str, float]:
    """Mean seconds, by stage."""
    stages = dict.fromkeys(stage for row in rows for stage in row.seconds if stage != _TOTAL)
    return {stage: sum(row.seconds.get(stage, 0.0) for row in rows) / len(rows) for stage in stages}
