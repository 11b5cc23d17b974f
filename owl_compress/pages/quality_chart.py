"""Quality against budget by method, with a band over seeds (Figure 2 of the OWL paper, arXiv 2310.05175)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from owl_compress.pages.drawing import (
    GRID,
    INK,
    LINES,
    QUIET,
    Panels,
    broken,
    inches,
    legend_below,
    legend_height,
    row_height,
    row_names,
    short_number,
    tidy,
)
from owl_compress.pages.families import Curve, Family, drawable
from owl_compress.plain_text import plain

_MARKERS = "osD^vP<>"
MOST_NAMED = 7
"""Methods that get a colour; of more, the best do, and the rest is grey."""

_COLUMNS, _HEIGHT, _LEFT = 2, 2.3, 0.75
_AROUND, _LINE, _BELOW = 0.2, 0.16, 0.5
_MOST_TICKS = 9
"""Labels of budgets that fit beside each other below a panel."""
_SPAN = 2.5
"""Largest over least from which a scale is logarithmic."""


@dataclass(frozen=True)
class Look:
    """How a method is drawn, the same wherever it is."""

    colour: str
    marker: str
    is_named: bool = True


def looks_of(families: Sequence[Family], *, larger_is_better: bool) -> dict[str, Look]:
    """A look for every method: quiet for baselines, colours for the best of the others."""
    curves = [curve for family in families for curve in family.curves]
    baselines = dict.fromkeys(curve.method for curve in curves if curve.is_baseline)
    others = [name for name in dict.fromkeys(curve.method for curve in curves) if name not in baselines]
    ranked = sorted(others, key=_mean_ranks(families, larger_is_better=larger_is_better).__getitem__)
    named = set(ranked[:MOST_NAMED])
    looks = {name: Look(INK, "o") for name in baselines}
    places = iter(range(len(others)))
    for name in others:
        if name in named:
            place = next(places)
            looks[name] = Look(LINES[place % len(LINES)], _MARKERS[(1 + place) % len(_MARKERS)])
        else:
            looks[name] = Look(QUIET, "none", is_named=False)
    return looks


def _mean_ranks(families: Sequence[Family], *, larger_is_better: bool) -> Mapping[str, float]:
    """The mean place of each method among all at a budget, 0 for the best."""
    ranks: dict[str, list[int]] = {}
    for family in families:
        for budget in family.budgets:
            means = {
                curve.method: point.mean
                for curve in family.curves
                for point in curve.points
                if point.budget == budget
            }
            for place, name in enumerate(sorted(means, key=means.__getitem__, reverse=larger_is_better)):
                ranks.setdefault(name, []).append(place)
    return {name: sum(places) / len(places) for name, places in ranks.items()}


def curves_figure(
    families: Sequence[Family], what: str, looks: Mapping[str, Look], width: float, *, is_ratio: bool
) -> Figure:
    """A panel for each family: a line for each method, a band from the least to the largest of its seeds."""
    families = drawable(families)
    columns = 1 if width < 5 else min(_COLUMNS, len(families))
    n_rows = ceil(len(families) / columns)
    names = [broken(f"{what}, {family.name}", width / columns) for family in families]
    entries = _legend(families, looks)
    legend = legend_height([str(one.get_label()) for one in entries], width)
    above = _AROUND + _LINE * max(name.count("\n") + 1 for name in names)
    figure = Panels(
        n_rows, columns, width, _HEIGHT, above, _BELOW + legend, _LEFT,
        between_rows=above + _BELOW, between_columns=_LEFT,
    ).figure()  # fmt: skip
    grid = list(figure.subplots(n_rows, columns, squeeze=False).flat)
    for spare in grid[len(families) :]:
        spare.remove()
    for axes, family, name in zip(grid, families, names, strict=False):
        tidy(axes)
        for curve in sorted(family.curves, key=lambda one: looks[one.method].is_named):
            _draw(axes, curve, looks[curve.method])
        _scale(axes, family, is_ratio=is_ratio)
        _dense(axes, family)
        axes.set_title(name, loc="left", color=INK, fontsize=10.5, pad=7, parse_math=False)
        axes.set_xlabel(family.axis, color=INK)
    legend_below(figure, entries)
    return figure


def _draw(axes: Axes, curve: Curve, look: Look) -> None:
    x = [point.budget for point in curve.points]
    low, mean, high = (
        np.array([getattr(point, name) for point in curve.points]) for name in ("low", "mean", "high")
    )
    if look.is_named and (high > low).any():
        axes.fill_between(x, low, high, color=look.colour, alpha=0.13, linewidth=0)
    axes.plot(
        x, mean, color=look.colour, marker=look.marker, markersize=4.5, markeredgewidth=0,
        linewidth=1.8 if look.is_named else 0.7, linestyle="--" if curve.is_baseline else "-",
        zorder=4 if look.is_named else 2,
    )  # fmt: skip


def _scale(axes: Axes, family: Family, *, is_ratio: bool) -> None:
    """Ticks at the budgets themselves; perplexities that differ by factors on a logarithmic scale."""
    axes.xaxis.set_major_locator(FixedLocator(_apart(list(family.budgets))))
    shown = family.shown
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: shown.get(round(value, 9), f"{value:g}")))
    means = [point.mean for curve in family.curves for point in curve.points]
    if is_ratio and min(means) > 0 and max(means) > _SPAN * min(means):
        axes.set_yscale("log")
    tick_plainly(axes.yaxis, is_logarithmic=axes.get_yscale() == "log")


def _apart(budgets: Sequence[float]) -> list[float]:
    """Rising budgets, no nearer to each other than labels need; both ends are among them."""
    nearest = (budgets[-1] - budgets[0]) / _MOST_TICKS
    kept = budgets[:1]
    for budget in budgets[1:-1]:
        if budget - kept[-1] >= nearest and budgets[-1] - budget >= nearest:
            kept = [*kept, budget]
    return [*kept, *budgets[1:][-1:]]


def tick_plainly(axis: Axis, *, is_logarithmic: bool, most: int = 7) -> None:
    """A few plain numbers, also on a logarithmic scale."""
    if is_logarithmic:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(nbins=most))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def _dense(axes: Axes, family: Family) -> None:
    """The dense model as a dotted line, its name on the side of the curves."""
    if family.dense is None:
        return
    is_above = family.dense > fmean(point.mean for curve in family.curves for point in curve.points)
    axes.axhline(family.dense, color=QUIET, linewidth=1.1, linestyle=(0, (1, 2)), zorder=1)
    axes.annotate(
        f"dense {family.dense:.4g}", (1, family.dense), xycoords=("axes fraction", "data"),
        xytext=(-3, -3 if is_above else 3), textcoords="offset points", ha="right",
        va="top" if is_above else "bottom", color=QUIET, fontsize=8.5,
    )  # fmt: skip


def _legend(families: Sequence[Family], looks: Mapping[str, Look]) -> list[Line2D]:
    curves = {curve.method: curve for family in families for curve in family.curves}
    entries = [
        Line2D(
            [],
            [],
            color=looks[name].colour,
            marker=looks[name].marker,
            markersize=4.5,
            markeredgewidth=0,
            linewidth=1.8,
            linestyle="--" if curve.is_baseline else "-",
            label=plain(name),
        )
        for name, curve in curves.items()
        if looks[name].is_named
    ]
    n_others = sum(not looks[name].is_named for name in curves)
    if n_others:
        entries.append(Line2D([], [], color=QUIET, linewidth=0.7, label=f"{n_others} others"))
    return entries


def ranking_figure(
    families: Sequence[Family], what: str, looks: Mapping[str, Look], width: float, *, larger_is_better: bool
) -> Figure:
    """A panel for each family of one budget: a mark for each method, the best on top, with its reach."""
    families = drawable(families)
    names = row_names([curve.method for family in families for curve in family.curves], width)
    heights = [0.75 + row_height(names) * len(family.curves) for family in families]
    figure = Figure(figsize=(width, 0.2 + sum(heights)))
    figure.set_layout_engine("constrained", h_pad=0.07, w_pad=0.07)
    panels = list(figure.subplots(len(families), 1, height_ratios=heights, squeeze=False)[:, 0])
    for axes, family in zip(panels, families, strict=True):
        tidy(axes)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        _draw_ranking(axes, family, looks, larger_is_better=larger_is_better)
        (group,) = family.budgets.values()
        name = broken(f"{what}, {group}", inches(axes))
        axes.set_title(name, loc="left", color=INK, fontsize=10.5, pad=6, parse_math=False)
    return figure


def _draw_ranking(axes: Axes, family: Family, looks: Mapping[str, Look], *, larger_is_better: bool) -> None:
    ranked = sorted(family.curves, key=lambda one: one.points[0].mean, reverse=not larger_is_better)
    for place, curve in enumerate(ranked):
        point, look = curve.points[0], looks[curve.method]
        if curve.is_baseline:
            axes.axvline(point.mean, color=QUIET, linewidth=1.0, linestyle=(0, (5, 4)), zorder=1)
        axes.hlines(place, point.low, point.high, color=look.colour, linewidth=2.0, alpha=0.55)
        marker = look.marker if look.is_named else "o"
        axes.plot(point.mean, place, color=look.colour, marker=marker, markersize=6, markeredgewidth=0)
    names = row_names([one.method for one in ranked], inches(axes))
    axes.set_yticks(range(len(ranked)), names, fontsize=9, parse_math=False)
    axes.set_ylim(-0.6, len(ranked) - 0.4)
    tick_plainly(axes.xaxis, is_logarithmic=False, most=6 if inches(axes) > 5 else 4)
