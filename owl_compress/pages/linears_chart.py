"""Small pictures of all linears of one role each: a number of every block, all on one scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from owl_compress.pages.drawing import (
    BAR,
    INK,
    LINES,
    QUIET,
    Array,
    Panels,
    block_labels,
    broken,
    legend_below,
    legend_height,
    tidy,
)  # fmt: skip
from owl_compress.plain_text import plain

_COLUMNS, _NARROW_COLUMNS = 4, 2
_HEIGHT, _LEFT, _GAP = 1.0, 0.52, 0.16
_TITLE, _LINE, _AROUND, _NUMBERS = 0.2, 0.16, 0.2, 0.3
_LETTERS_PER_INCH = 11

_TICKS = 3


@dataclass(frozen=True)
class Series:
    """One number for every linear: `values` by role, each [blocks], NaN where there is no such linear."""

    label: str
    values: Mapping[str, Array]
    is_quiet: bool = False


def linears_figure(
    series: Sequence[Series], blocks: Sequence[str], what: str, width: float, *, bars: bool
) -> Figure:
    """A panel for each role: bars of the only series, or a stepped line for each of several."""
    roles = list(dict.fromkeys(role for one in series for role in one.values))
    columns = min(len(roles), _COLUMNS if width > 5 else _NARROW_COLUMNS)
    n_rows = ceil(len(roles) / columns)
    lines = broken(what, width)
    names = [fill(plain(role), int(_LETTERS_PER_INCH * width / columns)) for role in roles]
    between = _LINE * max(name.count("\n") + 1 for name in names) + _AROUND
    legend = legend_height([one.label for one in series], width) if len(series) > 1 else 0.0
    above = _TITLE * (lines.count("\n") + 1) + between
    figure = Panels(
        n_rows, columns, width, _HEIGHT, above, _NUMBERS + legend, _LEFT,
        between_rows=between, between_columns=_GAP,
    ).figure()  # fmt: skip
    height = figure.get_figheight()
    grid = list(figure.subplots(n_rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for spare in grid[len(roles) :]:
        spare.remove()
    for place, (axes, role) in enumerate(zip(grid, roles, strict=False)):
        tidy(axes)
        _draw(axes, [(one, one.values[role]) for one in series if role in one.values], bars=bars)
        axes.set_title(names[place], loc="left", color=INK, fontsize=9.5, pad=4, parse_math=False)
        axes.tick_params(labelbottom=place + columns >= len(roles))  # nothing is below it
    _tick_blocks(grid[0], blocks)
    grid[0].yaxis.set_major_locator(MaxNLocator(nbins=4))
    figure.suptitle(
        lines,
        x=0.06 / width,
        y=1 - 0.04 / height,
        ha="left",
        va="top",
        color=INK,
        fontsize=11,
        parse_math=False,
    )
    if legend:
        legend_below(figure, grid[0].get_legend_handles_labels()[0])
    return figure


def _draw(axes: Axes, series: Sequence[tuple[Series, Array]], *, bars: bool) -> None:
    colours = iter(LINES * len(series))
    for one, values in series:
        edges = np.arange(len(values) + 1) - 0.5
        if bars:
            axes.stairs(np.nan_to_num(values), edges, fill=True, color=BAR, linewidth=0)
            continue
        axes.stairs(
            values, edges, baseline=None, linewidth=1.8, label=plain(one.label),
            color=QUIET if one.is_quiet else next(colours), zorder=3 if one.is_quiet else 4,
        )  # fmt: skip


def _tick_blocks(axes: Axes, blocks: Sequence[str]) -> None:
    labels = block_labels(blocks)
    last = len(blocks) - 1
    axes.set_xlim(-0.6, last + 0.6)
    ticks = len(blocks) if len(blocks) <= 2 * _TICKS else _TICKS
    places = sorted({round(last * step / max(1, ticks - 1)) for step in range(ticks)})
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda place, _: labels[round(place)] if 0 <= round(place) <= last else "")
    )
