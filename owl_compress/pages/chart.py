"""The picture of budgets: importance and budget of every block (Figure 1 of the OWL paper, 2310.05175)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from owl_compress.documents.plan import ROUNDING, LinearBudget, Plan, weighted_mean
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import Result
from owl_compress.documents.units import Grid, Unit
from owl_compress.errors import RequestError, nearest
from owl_compress.pages.drawing import (
    BAR,
    GRID_TICKS,
    KEPT_WORDS,
    LINES,
    QUIET,
    Array,
    legend_below,
    number_blocks,
    tidy,
    title,
    width_for,
    write_png,
)
from owl_compress.pages.words import as_asked, asked_name, target_in_words
from owl_compress.plain_text import plain


@dataclass(frozen=True)
class Budgets:
    """What every block keeps, asked for by a plan or counted in a result.

    Attributes:
        label: what the legend calls it.
        asked: the target in the words of a request.
        unit, target, grid: as in a plan.
        members: what each linear keeps.
    """

    label: str
    asked: str
    unit: Unit
    target: float
    grid: Grid | None
    members: tuple[LinearBudget, ...]

    @classmethod
    def of(cls, document: Plan | Result) -> Self:
        """What a plan asks for, or what a result counted."""
        if isinstance(document, Plan):
            plan = document
            words = target_in_words(plan)
            return cls(plan.allocator.name, words, plan.unit, plan.target, plan.grid, plan.budgets)
        unit, asked = document.budgets[0].unit, document.totals.asked
        members = tuple(
            LinearBudget(name=one.name, block=one.block, n_weights=one.n_weights, value=one.achieved)
            for one in document.budgets
        )
        words = f"{asked_name(unit)} {as_asked(unit, asked):.6g}"
        return cls(f"{document.backend.name}, counted", words, unit, asked, None, members)

    def called(self, label: str) -> Self:
        """The same under another name."""
        return replace(self, label=label)

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """The names of the blocks, in their order."""
        return tuple(dict.fromkeys(one.block for one in self.members))


def budget_chart(
    report: ImportanceReport, plan: Plan, path: Path, metric: str, *, others: Mapping[str, Plan] | None = None
) -> None:
    """Write a PNG to `path`: importance `metric` of each block above, the budget that `plan` gives it below.

    `others` are further plans to compare with, by the name the legend shows them under; all in one unit.

    Raises:
        RequestError: see `draw`.
    """
    others = others or {}
    own = Budgets.of(plan)
    if own.label in others:
        own = own.called(f"{own.label} (this plan)")
    draw(path, report, [own, *(Budgets.of(one).called(name) for name, one in others.items())], metric)


_MOST_ASKED = 3
"""With more a title only tells how many targets there are."""


def all_asked(budgets: Sequence[Budgets]) -> str:
    """What was asked for, once where several asked for the same: "sparsity 0.5, sparsity 0.6"."""
    asked = dict.fromkeys(one.asked for one in budgets)
    return ", ".join(asked) if len(asked) <= _MOST_ASKED else f"{len(asked)} targets"


def draw(path: Path, report: ImportanceReport | None, budgets: Sequence[Budgets], metric: str) -> None:
    """Write a PNG to `path`: see `budget_figure`.

    Raises:
        RequestError: see there, or the file cannot be written.
    """
    write_png(budget_figure(report, budgets, metric), path)


def budget_figure(
    report: ImportanceReport | None, budgets: Sequence[Budgets], metric: str, width: float | None = None
) -> Figure:
    """Importance `metric` of each block, what each keeps, or one below the other.

    A uniform plan is drawn grey. Where the linears of a block differ, a band shows from least to most. It is
    `width` inches wide, or as wide as the blocks ask for.

    Raises:
        RequestError: nothing to draw, the report lacks the metric, a plan is not for these blocks, or the
            units differ.
    """
    if report is None and not budgets:
        raise RequestError("there is nothing to draw: name a report, a plan or a result")
    names = [block.name for block in report.blocks] if report else list(budgets[0].blocks)
    _check(report, names, budgets, metric)
    panels = bool(report) + bool(budgets)
    figure = Figure(figsize=(width or width_for(len(names)), 5.4 if panels == 2 else 3.4))
    figure.set_layout_engine("constrained", h_pad=0.08, w_pad=0.08, hspace=0.04)
    ratios = (1, 1.2) if panels == 2 else (1,)
    rows = list(figure.subplots(panels, 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0])
    if report:
        _draw_importance(rows[0], [block.metrics[metric] for block in report.blocks], metric)
    if budgets:
        _draw_budgets(rows[-1], names, budgets)
    if len(budgets) > 1:
        legend_below(figure)
    for axes in rows:
        tidy(axes)
    number_blocks(rows[-1], names, report.model.id if report else "")
    return figure


def _check(
    report: ImportanceReport | None, names: Sequence[str], budgets: Sequence[Budgets], metric: str
) -> None:
    if report:
        known = set.intersection(*(set(block.metrics) for block in report.blocks))
        if metric not in known:
            raise RequestError(f"the report has no metric {metric!r}: {nearest(metric, known)}")
    whose = "the report" if report else f"{budgets[0].label!r}"
    for one in budgets:
        if one.unit is not budgets[0].unit:
            raise RequestError(f"plans in {budgets[0].unit} and {one.unit} do not fit on one chart")
        foreign = set(one.blocks) - set(names)
        if foreign:
            raise RequestError(f"plan names block {min(foreign)!r}, which {whose} does not have")


def _draw_importance(axes: Axes, values: list[float], metric: str) -> None:
    """Bars from zero; an LOD as percent, other metrics as they are."""
    is_share = metric.startswith("lod@")
    heights = [100 * value if is_share else value for value in values]
    axes.bar(range(len(heights)), heights, width=0.74, color=BAR, linewidth=0)
    multiple = metric.partition("@")[2]
    what = f"LOD, % of the weights scoring above {multiple} × the block's mean" if is_share else metric
    title(axes, f"Importance: {what}")
    axes.margins(y=0.08)


def _draw_budgets(axes: Axes, names: list[str], budgets: Sequence[Budgets]) -> None:
    """One stepped line for each, over the blocks, with the target dashed."""
    first = budgets[0]
    scale = 1.0 if first.unit is Unit.BITS else 100.0
    colours = iter(LINES * len(budgets))
    drawn: list[float] = []
    has_band = False
    for one in budgets:
        means, least, most = (scale * row for row in _per_block(one, names))
        is_flat = np.nanmax(means) - np.nanmin(means) <= scale * ROUNDING
        colour = QUIET if is_flat else next(colours)
        edges = np.arange(len(names) + 1) - 0.5
        if np.nanmax(most - least) > scale * ROUNDING:
            has_band = True
            axes.stairs(most, edges, baseline=least, fill=True, color=colour, alpha=0.16, linewidth=0)
        axes.stairs(
            means, edges, baseline=None, color=colour, linewidth=2.2, label=plain(one.label),
            zorder=3 if is_flat else 4,
        )  # fmt: skip
        drawn += [np.nanmin(least), np.nanmax(most)]
    _mark_targets(axes, sorted({round(scale * one.target, 6) for one in budgets}), drawn)
    whose = "" if len(budgets) > 1 else f" by {first.label}"
    band = "; band: linears" if has_band else ""
    title(axes, f"Budget{whose} at {all_asked(budgets)}: {KEPT_WORDS[first.unit]}{band}")
    _tick_budgets(axes, first.grid, scale)


def _tick_budgets(axes: Axes, grid: Grid | None, scale: float) -> None:
    """Ticks at what a coarse grid allows, else at round numbers."""
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    if grid and len(grid.values()) <= GRID_TICKS + 1:
        low, high = axes.get_ylim()
        axes.set_yticks([scale * value for value in grid.values() if low <= scale * value <= high])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _mark_targets(axes: Axes, targets: list[float], drawn: list[float]) -> None:
    """Dash targets and zoom on the budgets: differences of a few percent are what the picture is about."""
    low, high = min([*drawn, *targets]), max([*drawn, *targets])
    room = 0.12 * (high - low) if high > low else 0.1 * abs(low) or 1.0
    axes.set_ylim(low - room, high + room)
    for target in targets:
        axes.axhline(target, color=QUIET, linewidth=1.0, linestyle=(0, (5, 4)), zorder=2)
        axes.annotate(
            f"target {target:.4g}", (1, target), xycoords=("axes fraction", "data"), xytext=(4, 0),
            textcoords="offset points", va="center", color=QUIET, fontsize=9, annotation_clip=False,
        )  # fmt: skip


def _per_block(budgets: Budgets, names: list[str]) -> tuple[Array, Array, Array]:
    """Mean, least and most budget, each [len(names)]; NaN for a block that is left alone."""
    members: dict[str, list[LinearBudget]] = {}
    for budget in budgets.members:
        members.setdefault(budget.block, []).append(budget)
    rows = np.full((3, len(names)), np.nan)
    for column, name in enumerate(names):
        if name in members:
            values = [budget.value for budget in members[name]]
            rows[:, column] = weighted_mean(tuple(members[name])), min(values), max(values)
    return rows[0], rows[1], rows[2]
