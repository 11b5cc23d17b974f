"""What cells cost: quality against size, and where the time went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from owl_compress.pages.drawing import (
    GRID,
    INK,
    LINES,
    MOST_DRAWN,
    inches,
    legend_below,
    row_height,
    row_names,
    tidy,
)
from owl_compress.pages.quality_chart import tick_plainly
from owl_compress.plain_text import plain

_MARKERS = "osD^vP<>"
_SPAN = 2.5


@dataclass(frozen=True)
class Priced:
    """One method at one budget: its size and its quality, both means over seeds; `kind` is its family."""

    kind: str
    size: float
    quality: float


def size_figure(priced: Sequence[Priced], size: str, quality: str, width: float) -> Figure:
    """A mark for each method at each budget; down and to the left is small and good."""
    figure = Figure(figsize=(width, 3.6))
    figure.set_layout_engine("constrained", h_pad=0.07, w_pad=0.07)
    axes = figure.subplots()
    tidy(axes)
    for place, kind in enumerate(dict.fromkeys(one.kind for one in priced)):
        members = [one for one in priced if one.kind == kind]
        axes.plot(
            [one.size for one in members], [min(one.quality, MOST_DRAWN) for one in members],
            linestyle="none",
            marker=_MARKERS[place % len(_MARKERS)], color=LINES[place % len(LINES)], markersize=6,
            markeredgewidth=0, alpha=0.8, label=plain(kind),
        )  # fmt: skip
    values = [min(one.quality, MOST_DRAWN) for one in priced]
    if min(values) > 0 and max(values) > _SPAN * min(values):
        axes.set_yscale("log")
    tick_plainly(axes.yaxis, is_logarithmic=axes.get_yscale() == "log")
    tick_plainly(axes.xaxis, is_logarithmic=False)
    axes.set_xlabel(size, color=INK)
    axes.set_title(plain(quality), loc="left", color=INK, fontsize=10.5, pad=7, parse_math=False)
    legend_below(figure)
    return figure


def time_figure(seconds: Mapping[str, Mapping[str, float]], told: str, width: float) -> Figure:
    """A bar for each method, cut into its stages: `seconds` by method and stage; `told` says of what."""
    stages = list(dict.fromkeys(stage for row in seconds.values() for stage in row))
    names = row_names(list(seconds), width)
    figure = Figure(figsize=(width, 1.0 + row_height(names) * len(seconds)))
    figure.set_layout_engine("constrained", h_pad=0.07, w_pad=0.07)
    axes = figure.subplots()
    tidy(axes)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    places = range(len(seconds))
    left = [0.0] * len(seconds)
    for number, stage in enumerate(stages):
        widths = [row.get(stage, 0.0) for row in seconds.values()]
        axes.barh(
            places, widths, left=left, height=0.66, color=LINES[number % len(LINES)], label=plain(stage)
        )
        left = [start + more for start, more in zip(left, widths, strict=True)]
    axes.set_yticks(places, names, fontsize=9, parse_math=False)
    axes.set_ylim(len(seconds) - 0.4, -0.6)  # the first on top
    tick_plainly(axes.xaxis, is_logarithmic=False, most=6 if inches(axes) > 5 else 4)
    axes.set_title(f"Seconds of a cell, {told}", loc="left", color=INK, fontsize=10.5, pad=6)
    legend_below(figure)
    return figure
