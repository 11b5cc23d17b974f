"""The picture of a sensitivity profile: damage against level for every part, and where in the model it is."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke

from owl_compress.documents.plan import LinearBudget
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.pages.chart import Budgets, all_asked
from owl_compress.pages.curves import MEASURES_IN_WORDS, Panel, cells_of, median_of, panels_of
from owl_compress.pages.drawing import (
    INK,
    LINES,
    QUIET,
    broken,
    is_narrow,
    legend_below,
    number_blocks,
    paint_cells,
    settle_bar,
    tidy,
    width_for,
    write_png,
)
from owl_compress.pages.scales import NO_DAMAGE, Scales, tick_damage, tick_depth
from owl_compress.plain_text import plain

_PANEL_WIDTH, _PANEL_HEIGHT = 2.3, 2.7
_FEWEST_COLUMNS, _MOST_COLUMNS = 2, 4
_BAR_WIDTH = 0.14
_MANY_BLOCKS = 40
_MOST_WITH_POINTS = 48
_MARKS = LINES[1:]  # the first is the blue of the map
_KEPT_NAMES = {Unit.DENSITY: "weights kept", Unit.WIDTH: "weights left", Unit.BITS: "bits per weight"}


def draw_damage(path: Path, profile: SensitivityProfile, budgets: Sequence[Budgets] = ()) -> None:
    """Write a PNG to `path`: see `damage_figure`.

    Raises:
        RequestError: budgets in another unit or for other blocks, or the file cannot be written.
    """
    write_png(damage_figure(profile, budgets), path)


def damage_figure(
    profile: SensitivityProfile, budgets: Sequence[Budgets] = (), width: float | None = None
) -> Figure:
    """Damage against level for every part, above a map of damage by block and level.

    Parts of one kind share a panel, coloured by the depth of their block. `budgets` of plans or results mark
    the level that each part got. What is not above zero has no place on a logarithmic scale: it lies at the
    foot of the curves, hollow, and is grey in the map. The picture is `width`
    inches wide, or as wide as the blocks ask for.

    Raises:
        RequestError: budgets in another unit or for other blocks.
    """
    _check(profile, budgets)
    panels = panels_of(profile)
    scales = Scales.of(profile, panels)
    width = width or max(8.0, width_for(len(profile.blocks)))
    room = max(_FEWEST_COLUMNS, int(width / _PANEL_WIDTH))
    n_rows = ceil(len(panels) / min(_MOST_COLUMNS, room))
    shape = (n_rows, ceil(len(panels) / n_rows))
    upper, lower = 0.5 + _PANEL_HEIGHT * n_rows, 0.7 + sum(map(_map_height, panels))
    figure = Figure(figsize=(width, upper + lower))
    figure.set_layout_engine("constrained", h_pad=0.06, w_pad=0.08, hspace=0.03)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(upper, lower))[:, 0]
    _draw_curves(above, shape, panels, scales, budgets)
    _bar(above, ScalarMappable(scales.depth, scales.depth_colours), "block", upper)
    tick_depth(above.axes[-1], scales.blocks)
    _headline(
        above, f"Damage by {profile.backend.name}, one part at a time: {MEASURES_IN_WORDS[profile.measure]}"
    )
    _draw_maps(below, panels, scales, budgets)
    number_blocks(below.axes[-1], scales.blocks, profile.model.id)
    if scales.heights.is_logarithmic:
        _bar(below, ScalarMappable(scales.damage, scales.damage_colours), "damage", lower)
        tick_damage(below.axes[-1].yaxis, scales.heights, most=5)
    _headline(below, "Where in the model, by level" + _asked(budgets))
    _explain(figure, panels, scales, budgets)
    return figure


def _check(profile: SensitivityProfile, budgets: Sequence[Budgets]) -> None:
    for one in budgets:
        if one.unit is not profile.unit:
            raise RequestError(
                f"plan {one.label!r} in {one.unit} and a profile in {profile.unit} do not fit on one chart"
            )
        foreign = {member.name for member in one.members} - profile.linear_sizes.keys()
        if foreign:
            raise RequestError(
                f"plan {one.label!r} names linear {min(foreign)!r}, which the profile does not have"
            )


def _levels(budgets: Budgets) -> dict[str, LinearBudget]:
    return {member.name: member for member in budgets.members}


def _asked(budgets: Sequence[Budgets]) -> str:
    if not budgets:
        return ""
    who = f", and budget by {budgets[0].label}" if len(budgets) == 1 else ", and budgets"
    return f"{who} at {all_asked(budgets)}"


def _colours(budgets: Sequence[Budgets]) -> list[str]:
    """One for each; equal budgets for all are grey, as in the picture of budgets."""
    colours = iter(_MARKS * len(budgets))
    return [QUIET if len({member.value for member in one.members}) == 1 else next(colours) for one in budgets]


def _headline(part: SubFigure, text: str) -> None:
    part.suptitle(
        broken(text, part.figure.get_figwidth()), x=0.008, ha="left", color=INK, fontsize=11, parse_math=False
    )


def _map_height(panel: Panel) -> float:
    """Inches of a map."""
    return max(0.8, min(1.7, 0.4 + 0.16 * len(panel.levels)))


def _draw_curves(
    part: SubFigure,
    shape: tuple[int, int],
    panels: Sequence[Panel],
    scales: Scales,
    budgets: Sequence[Budgets],
) -> None:
    """A panel for each kind of part, all to one scale; marks of the budgets where these are of one plan."""
    grid = list(part.subplots(*shape, sharex=True, sharey=True, squeeze=False).flat)
    for spare in grid[len(panels) :]:
        spare.remove()
    for index, (axes, panel) in enumerate(zip(grid, panels, strict=False)):
        tidy(axes)
        _draw_panel(axes, panel, scales)
        if len(budgets) == 1:
            _mark_levels(axes, panel, scales, budgets[0])
        if len(panels) > 1:
            _name_panel(axes, panel)
        if index + shape[1] >= len(panels):  # nothing is below it
            axes.tick_params(labelbottom=True)
            axes.set_xlabel(_KEPT_NAMES[scales.unit], color=INK)
    finest = max(panels, key=lambda panel: len(panel.levels))
    most = 8 if shape[1] <= 2 else 5
    scales.tick_levels(grid[0].xaxis, finest, most=max(2, most // 2) if is_narrow(grid[0]) else most)
    heights = scales.heights
    if heights.is_logarithmic:
        grid[0].set_yscale("log")
        room = max(1.1, (heights.top / heights.foot) ** 0.05)
        grid[0].set_ylim(heights.foot / room, heights.top * room)
    tick_damage(grid[0].yaxis, heights, most=8)


def _draw_panel(axes: Axes, panel: Panel, scales: Scales) -> None:
    """Thin lines by depth, points where damage was measured unless these are many, the median on top."""
    colours = [scales.depth_colours(scales.depth(curve.block)) for curve in panel.curves]
    lines = [
        np.column_stack([curve.levels, scales.heights.heights(curve.damage)]) for curve in panel.curves
    ]  # each [levels, 2]
    axes.add_collection(LineCollection(lines, colors=colours, linewidths=0.9, alpha=0.85))
    x, y = np.concatenate(lines).T
    of_point = np.repeat(np.array(colours), [len(line) for line in lines], axis=0)
    is_drawn = scales.heights.is_on_scale(np.concatenate([curve.damage for curve in panel.curves]))
    if len(panel.curves) <= _MOST_WITH_POINTS:
        axes.scatter(x[is_drawn], y[is_drawn], s=7, color=of_point[is_drawn], linewidths=0, zorder=3)
    axes.scatter(
        x[~is_drawn], y[~is_drawn], s=14, facecolor="white", edgecolor=of_point[~is_drawn], linewidths=0.9,
        zorder=3,
    )  # fmt: skip
    median = median_of(panel, scales.heights)
    if median is not None:
        axes.plot(
            *median, color=INK, linewidth=2.4, zorder=4,
            path_effects=[Stroke(linewidth=4, foreground="white"), Normal()],
        )  # fmt: skip


def _mark_levels(axes: Axes, panel: Panel, scales: Scales, budgets: Budgets) -> None:
    """A point on each line at the level that the part gets, where that is within what was measured."""
    levels = _levels(budgets)
    marks = [
        (level, float(scales.heights.between(curve, [level])[0]))
        for curve in panel.curves
        if curve.levels.size and (level := curve.level_in(levels)) is not None
    ]
    if marks:
        x, y = zip(*marks, strict=True)
        colour = _colours([budgets])[0]
        axes.scatter(x, y, s=26, color=colour, edgecolor="white", linewidths=0.7, zorder=5)


def _draw_maps(part: SubFigure, panels: Sequence[Panel], scales: Scales, budgets: Sequence[Budgets]) -> None:
    """One map for each kind of part, blocks along, levels up, with a plan's levels as steps over it."""
    ratios = [_map_height(panel) for panel in panels]
    rows = list(part.subplots(len(panels), 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0])
    for axes, panel in zip(rows, panels, strict=True):
        tidy(axes)
        axes.grid(visible=False)
        _draw_map(axes, panel, scales)
        for one, colour in zip(budgets, _colours(budgets), strict=True):
            _draw_steps(axes, panel, _levels(one), colour)
        axes.margins(y=0.02)
        scales.tick_levels(axes.yaxis, panel, most=4)
        if len(panels) > 1:
            _name_panel(axes, panel)


def _draw_map(axes: Axes, panel: Panel, scales: Scales) -> None:
    cells = np.concatenate([cells_of(curve, scales.unit) for curve in panel.curves])  # [cells, 4, 2]
    damage = np.concatenate([curve.damage for curve in panel.curves])
    is_drawn = (damage > 0) & scales.heights.is_on_scale(damage)
    colours = ScalarMappable(scales.damage, scales.damage_colours)
    paint_cells(
        axes, cells, np.where(is_drawn, damage, np.nan), colours, are_many=len(scales.blocks) > _MANY_BLOCKS
    )
    axes.autoscale_view()


def _draw_steps(axes: Axes, panel: Panel, levels: Mapping[str, LinearBudget], colour: str) -> None:
    """The level that each part gets, in steps over its own column; a gap where a plan leaves it alone."""
    found = [(curve, curve.level_in(levels)) for curve in panel.curves]
    points = [(x, np.nan if level is None else level) for one, level in found for x in (one.left, one.right)]
    axes.plot(
        *zip(*points, strict=True), color=colour, linewidth=1.9, zorder=4, solid_joinstyle="miter",
        path_effects=[Stroke(linewidth=3.6, foreground="white"), Normal()],
    )  # fmt: skip


def _name_panel(axes: Axes, panel: Panel) -> None:
    axes.set_title(plain(panel.name), loc="left", color=INK, fontsize=9.5, pad=5, parse_math=False)


def _bar(part: SubFigure, colours: ScalarMappable, label: str, height: float) -> None:
    """A bar of colours beside all axes, as thin on a tall picture as on a flat one."""
    drawn = list(part.axes)
    bar = part.colorbar(colours, ax=drawn, label=label, aspect=height / _BAR_WIDTH, pad=0.015)
    bar.ax.tick_params(colors=QUIET, labelcolor=INK, length=0, which="both")
    bar.ax.yaxis.label.set_color(INK)
    settle_bar(bar)


def _labelled(budgets: Budgets, panels: Sequence[Panel]) -> str:
    """The name of a plan, and how many of its parts have no point among the curves."""
    levels = _levels(budgets)
    curves = [curve for panel in panels for curve in panel.curves if curve.levels.size]
    found = [(curve.levels[-1], curve.level_in(levels)) for curve in curves]
    n_beyond = sum(level is not None and level > highest for highest, level in found)
    keep = "keeps" if n_beyond == 1 else "keep"
    beyond = f" ({n_beyond} of {len(curves)} parts {keep} more than was tried)" if n_beyond else ""
    return plain(budgets.label) + beyond


def _explain(figure: Figure, panels: Sequence[Panel], scales: Scales, budgets: Sequence[Budgets]) -> None:
    """A legend of what is drawn and does not speak for itself."""
    entries: list[Artist] = []
    if any(median_of(panel, scales.heights) for panel in panels):
        entries.append(Line2D([], [], color=INK, linewidth=2.4, label="median"))
    marker = "o" if len(budgets) == 1 else "none"
    entries += [
        Line2D([], [], color=colour, linewidth=1.9, marker=marker, markersize=5, label=_labelled(one, panels))
        for one, colour in zip(budgets, _colours(budgets), strict=True)
    ]
    if scales.heights.foot < scales.heights.least or not scales.heights.is_logarithmic:
        entries.append(Patch(color=NO_DAMAGE, label="no damage, or below zero"))
    if entries:
        legend_below(figure, entries)
