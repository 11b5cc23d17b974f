"""The picture of every linear: a row for each role, a column for each block, darker where there is more."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from owl_compress.pages.drawing import (
    INK,
    QUIET,
    broken,
    cut_names,
    inches,
    number_blocks,
    paint_cells,
    settle_bar,
    tidy,
)

Grid = np.ndarray[tuple[int, int], np.dtype[np.float64]]

_ROW, _ABOVE, _BELOW = 0.25, 0.42, 0.6
_SPAN = 12.0
"""Largest over least from which colours are logarithmic: below it, a few large values would hide the rest."""

_MANY_BLOCKS = 40
_CORNERS = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])


@dataclass(frozen=True)
class HeatMap:
    """One quantity of every linear, by role and block.

    Attributes:
        title: what the quantity is.
        roles: names of the rows, from the top.
        blocks: names of the columns.
        values: [roles, blocks]; NaN where a block has no such linear, or none that was counted.
        quantity: maps of one quantity share a scale of colours.
    """

    title: str
    roles: tuple[str, ...]
    blocks: tuple[str, ...]
    values: Grid
    quantity: str = ""

    @classmethod
    def of(
        cls,
        title: str,
        blocks: Sequence[str],
        linears: Iterable[tuple[str, str, int, float]],
        quantity: str = "",
    ) -> "HeatMap":
        """From linears as (block, role, weights, value); linears of one role in a block are averaged."""
        sums: dict[tuple[str, str], tuple[float, int]] = {}
        for block, role, n_weights, value in linears:
            total, weights = sums.get((role, block), (0.0, 0))
            sums[role, block] = (total + n_weights * value, weights + n_weights)
        roles = tuple(dict.fromkeys(role for role, _ in sums))
        values = np.full((len(roles), len(blocks)), np.nan)
        rows, columns = _places(roles), _places(blocks)
        for (role, block), (total, weights) in sums.items():
            if block in columns:
                values[rows[role], columns[block]] = total / weights
        return cls(title, roles, tuple(blocks), values, quantity or title)

    @property
    def extremes(self) -> str:
        """The least and the largest value, and where they are, in words."""
        ends = (("least", np.nanargmin(self.values)), ("largest", np.nanargmax(self.values)))
        return "; ".join(f"{name} {self._told(int(place))}" for name, place in ends)

    def _told(self, place: int) -> str:
        row, column = divmod(place, len(self.blocks))
        return f"{self.values[row, column]:.4g} in {self.roles[row]} of {self.blocks[column]}"


def is_logarithmic(maps: Sequence[HeatMap]) -> bool:
    """Whether equal steps of colour are equal factors on a scale that so many maps share."""
    least, most = _extremes(maps)
    return least > 0 and most > _SPAN * least


def _extremes(maps: Sequence[HeatMap]) -> tuple[float, float]:
    values = np.concatenate([one.values.ravel() for one in maps])
    return float(np.nanmin(values)), float(np.nanmax(values))


def _places(names: Sequence[str]) -> Mapping[str, int]:
    return {name: place for place, name in enumerate(names)}


def heat_figure(maps: Sequence[HeatMap], model: str, width: float) -> Figure:
    """The maps below each other, all of the same blocks, each with its own scale of colours."""
    heights = [_ABOVE + _ROW * len(one.roles) for one in maps]
    figure = Figure(figsize=(width, sum(heights) + _BELOW))
    figure.set_layout_engine("constrained", h_pad=0.05, w_pad=0.05, hspace=0.03)
    rows = list(figure.subplots(len(maps), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0])
    for axes, one in zip(rows, maps, strict=True):
        _draw(axes, one, [other for other in maps if other.quantity == one.quantity])
    number_blocks(rows[-1], maps[-1].blocks, model)
    return figure


def _draw(axes: Axes, one: HeatMap, alike: Sequence[HeatMap]) -> None:
    """One map, on the scale of all that are of the same quantity."""
    tidy(axes)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    colours = ListedColormap(mpl.colormaps["Blues"](np.linspace(0.06, 1, 256)))
    norm = _norm(alike)
    rows, columns = np.indices(one.values.shape)
    corners = np.stack([columns, rows], axis=-1).reshape(-1, 1, 2) + _CORNERS  # [cells, 4, 2]
    is_there = ~np.isnan(one.values.ravel())
    paint_cells(
        axes, corners[is_there], one.values.ravel()[is_there], ScalarMappable(norm, colours),
        are_many=len(one.blocks) > _MANY_BLOCKS,
    )  # fmt: skip
    axes.set_ylim(-0.5, len(one.roles) - 0.5)
    axes.invert_yaxis()
    axes.set_yticks(range(len(one.roles)), cut_names(one.roles, inches(axes)), fontsize=9, parse_math=False)
    axes.set_title(
        broken(one.title, inches(axes)), loc="left", color=INK, fontsize=11, pad=6,
        parse_math=False,
    )  # fmt: skip
    bar = axes.figure.colorbar(ScalarMappable(norm, colours), ax=axes, pad=0.015, aspect=9, fraction=0.05)
    _tick(bar.ax.yaxis, alike)
    bar.ax.tick_params(colors=QUIET, labelcolor=INK, length=0, which="both", labelsize=9)
    settle_bar(bar)


def _norm(maps: Sequence[HeatMap]) -> Normalize:
    least, most = _extremes(maps)
    if is_logarithmic(maps):
        return LogNorm(least, most)
    return Normalize(least, most if most > least else least + 1)


def _tick(axis: Axis, maps: Sequence[HeatMap]) -> None:
    """A few plain numbers."""
    axis.set_major_locator(
        LogLocator(subs=(1.0, 3.0), numticks=5) if is_logarithmic(maps) else MaxNLocator(nbins=3)
    )
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(
        FuncFormatter(
            lambda value, _: np.format_float_positional(value, precision=3, fractional=False, trim="-")
        )
    )
