"""The picture of a plan: importance and budget of every block (Figure 1 of the OWL paper, 2310.05175)."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from owl_compress.documents.disk import write_bytes
from owl_compress.documents.plan import ROUNDING, LinearBudget, Plan, weighted_mean
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.units import BitsGrid, KeptOfGrid, Unit
from owl_compress.errors import RequestError, nearest
from owl_compress.plain_text import plain

Array = np.ndarray[tuple[int], np.dtype[np.float64]]

_INK, _QUIET, _GRID, _BAR = "#1f2933", "#7b8794", "#e4e7eb", "#f0b429"
_LINES = ("#0b69a3", "#c52707", "#3f9142", "#8719e0", "#a1680c", "#0e7c86")
_DPI = 160


def budget_chart(
    report: ImportanceReport, plan: Plan, path: Path, metric: str, *, others: Mapping[str, Plan] | None = None
) -> None:
    """Write a PNG to `path`: importance `metric` of each block above, the budget that `plan` gives it below.

    `others` are further plans to compare with, by the name the legend shows them under; all in one unit.
    A uniform plan is drawn grey. Where the linears of a block differ, a band shows from least to most.

    Raises:
        RequestError: the report lacks the metric, a plan is not for these blocks, the units differ, or
            the file cannot be written.
    """
    others = others or {}
    own_name = plan.allocator.name + (" (this plan)" if plan.allocator.name in others else "")
    plans = {plain(name): one for name, one in {own_name: plan, **others}.items()}
    names = [block.name for block in report.blocks]
    _check(report, list(plans.values()), metric)
    figure = Figure(figsize=(max(6.4, min(14.0, 2.2 + 0.26 * len(names))), 5.4))
    figure.set_layout_engine("constrained", h_pad=0.08, w_pad=0.08, hspace=0.04)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.2))
    _draw_importance(top, [block.metrics[metric] for block in report.blocks], metric)
    _draw_budgets(bottom, names, plans)
    for axes in (top, bottom):
        _tidy(axes)
    bottom.set_xlabel(plain(f"block of {report.model.id}"), color=_INK, parse_math=False)
    bottom.set_xlim(-0.6, len(names) - 0.4)
    bottom.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True, min_n_ticks=1))
    _write_png(figure, path)


def _check(report: ImportanceReport, plans: Sequence[Plan], metric: str) -> None:
    names = {block.name for block in report.blocks}
    known = set.intersection(*(set(block.metrics) for block in report.blocks))
    if metric not in known:
        raise RequestError(f"the report has no metric {metric!r}: {nearest(metric, known)}")
    for plan in plans:
        if plan.unit is not plans[0].unit:
            raise RequestError(f"plans in {plans[0].unit} and {plan.unit} do not fit on one chart")
        foreign = {block.name for block in plan.per_block} - names
        if foreign:
            raise RequestError(f"plan names block {min(foreign)!r}, which the report does not have")


def _draw_importance(axes: Axes, values: list[float], metric: str) -> None:
    """Bars from zero; an LOD as percent, other metrics as they are."""
    is_share = metric.startswith("lod@")
    heights = [100 * value if is_share else value for value in values]
    axes.bar(range(len(heights)), heights, width=0.74, color=_BAR, linewidth=0)
    multiple = metric.partition("@")[2]
    what = f"LOD, % of the weights scoring above {multiple} × the block's mean" if is_share else metric
    _title(axes, f"Importance: {what}")
    axes.margins(y=0.08)


def _draw_budgets(axes: Axes, names: list[str], plans: Mapping[str, Plan]) -> None:
    """One stepped line per plan over the block numbers, with the target dashed."""
    first = next(iter(plans.values()))
    scale = 1.0 if first.unit is Unit.BITS else 100.0
    colours = iter(_LINES * len(plans))
    drawn: list[float] = []
    for label, plan in plans.items():
        means, least, most = (scale * row for row in _per_block(plan, names))
        is_flat = np.nanmax(means) - np.nanmin(means) <= scale * ROUNDING
        colour = _QUIET if is_flat else next(colours)
        edges = np.arange(len(names) + 1) - 0.5
        if np.nanmax(most - least) > scale * ROUNDING:
            axes.stairs(most, edges, baseline=least, fill=True, color=colour, alpha=0.16, linewidth=0)
        axes.stairs(
            means, edges, baseline=None, color=colour, linewidth=2.2, label=label, zorder=3 if is_flat else 4
        )
        drawn += [np.nanmin(least), np.nanmax(most)]
    _mark_target(axes, scale * first.target, drawn)
    whose = "" if len(plans) > 1 else f" by {next(iter(plans))}"
    _title(axes, f"Budget{whose}: {_budget_label(first)}")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    if isinstance(first.grid, BitsGrid):
        axes.set_yticks(first.grid.values())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if len(plans) > 1:
        legend = axes.legend(
            frameon=False, ncols=len(plans), loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.15,
            labelcolor=_INK, fontsize=9.5, handlelength=1.4, columnspacing=1.4,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)


def _mark_target(axes: Axes, target: float, drawn: list[float]) -> None:
    """Dash the target and zoom on the budgets: differences of a few percent are what the picture is about."""
    axes.axhline(target, color=_QUIET, linewidth=1.0, linestyle=(0, (5, 4)), zorder=2)
    low, high = min([*drawn, target]), max([*drawn, target])
    room = 0.12 * (high - low) if high > low else 0.1 * abs(target) or 1.0
    axes.set_ylim(low - room, high + room)
    axes.annotate(
        f"target {target:.4g}", (1, target), xycoords=("axes fraction", "data"), xytext=(4, 0),
        textcoords="offset points", va="center", color=_QUIET, fontsize=9, annotation_clip=False,
    )  # fmt: skip


def _per_block(plan: Plan, names: list[str]) -> tuple[Array, Array, Array]:
    """Mean, least and most budget, each [len(names)]; NaN for a block that the plan leaves alone."""
    members: dict[str, list[LinearBudget]] = {}
    for budget in plan.budgets:
        members.setdefault(budget.block, []).append(budget)
    rows = np.full((3, len(names)), np.nan)
    for column, name in enumerate(names):
        if name in members:
            values = [budget.value for budget in members[name]]
            rows[:, column] = weighted_mean(tuple(members[name])), min(values), max(values)
    return rows[0], rows[1], rows[2]


def _budget_label(plan: Plan) -> str:
    if isinstance(plan.grid, KeptOfGrid):
        return f"% of the weights kept, N of every {plan.grid.kept_of}"
    return {
        Unit.DENSITY: "% of the weights kept",
        Unit.WIDTH: "% of heads and channels kept",
        Unit.BITS: "bits per weight",
    }[plan.unit]


def _title(axes: Axes, text: str) -> None:
    axes.set_title(plain(text), loc="left", color=_INK, fontsize=11, pad=8, parse_math=False)


def _tidy(axes: Axes) -> None:
    """Leave the axes nothing but a baseline and quiet horizontal lines."""
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.tick_params(colors=_QUIET, labelcolor=_INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_QUIET)


def _write_png(figure: Figure, path: Path) -> None:
    """Write the figure whole or not at all, always the same bytes for the same figure."""
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(picture, format="png", dpi=_DPI, metadata={"Software": None})
    write_bytes(path, picture.getvalue())
