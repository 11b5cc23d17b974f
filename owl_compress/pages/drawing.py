"""The house's style of pictures: ink, quiet lines, titles, and PNG files that are the same every time."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path, PurePath
from textwrap import fill

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PathCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import to_hex
from matplotlib.figure import Figure, SubFigure
from matplotlib.path import Path as Outline
from matplotlib.ticker import FuncFormatter, MaxNLocator

from owl_compress.documents.disk import write_bytes
from owl_compress.documents.outputs import PICTURE_SOFTWARE
from owl_compress.documents.units import Unit
from owl_compress.pages.words import block_numbers
from owl_compress.plain_text import plain

Array = np.ndarray[tuple[int], np.dtype[np.float64]]
Corners = np.ndarray[tuple[int, int, int], np.dtype[np.float64]]

INK, QUIET, GRID, BAR = "#1f2933", "#7b8794", "#e4e7eb", "#f0b429"
LINES = ("#0072b2", "#d55e00", "#009e73", "#b0568c", "#8c6d00", "#56b4e9")
"""Told apart by colour-blind eyes too, after Okabe and Ito (2008), three of them darker."""

_LEGEND_COLUMNS, _LEGEND_ROW, _ABOVE_LEGEND = 4, 0.2, 0.14
GRID_TICKS = 8
"""Steps of a grid that is coarse enough for a tick at each."""
MOST_DRAWN = 1e100
"""Largest figure in a picture: the margins around it are to be floats still."""
KEPT_WORDS = {
    Unit.DENSITY: "% of the weights kept",
    Unit.WIDTH: "% of the weights left",
    Unit.BITS: "bits of each block",
}
_DPI = 160
_TICKS, _LONG_NAME = 16, 40
_NARROW, _NARROW_TICKS = 5.0, 8
_LETTERS_PER_INCH, _LETTERS_OF_MARK = 10, 5
_SMALL_LETTERS_PER_INCH, _SHARE_OF_NAMES, _LINE, _BETWEEN_ROWS = 12, 0.38, 0.14, 0.13


def width_for(n_blocks: int) -> float:
    """Inches that so many blocks beside each other take."""
    return max(6.4, min(14.0, 2.2 + 0.26 * n_blocks))


def inches(axes: Axes) -> float:
    """How wide the whole picture is."""
    figure = axes.figure
    root = figure.figure if isinstance(figure, SubFigure) else figure
    return float(root.get_figwidth())


def is_narrow(axes: Axes) -> bool:
    """Whether the picture is as narrow as a phone: less text beside each other, and fewer ticks."""
    return inches(axes) < _NARROW


def broken(text: str, width: float) -> str:
    """`text` as it can be shown, in lines that a picture so many inches wide has room for."""
    return fill(plain(text), int(_LETTERS_PER_INCH * width))


def short_number(value: float) -> str:
    """A number in eight letters at most: 250,000, 4.5e7, 0.012, 1.75e-4."""
    if value and not 1e-3 <= abs(value) < 1e6:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:,.6g}"


def row_names(names: Sequence[str], width: float) -> list[str]:
    """Names of rows of a picture, broken so that they leave it most of its width."""
    return [fill(plain(name), int(_SMALL_LETTERS_PER_INCH * _SHARE_OF_NAMES * width)) for name in names]


def cut_names(names: Sequence[str], width: float) -> list[str]:
    """Names of rows on one line each; of long ones the end, which tells them apart."""
    most = int(_SMALL_LETTERS_PER_INCH * _SHARE_OF_NAMES * width)
    shown = map(plain, names)
    return [name if len(name) <= most else f"…{name[1 - most :]}" for name in shown]


def row_height(names: Sequence[str]) -> float:
    """Inches of each row, for names that are broken already."""
    return _LINE * max(name.count("\n") + 1 for name in names) + _BETWEEN_ROWS


def title(axes: Axes, text: str) -> None:
    """Say above the axes what they show; names in `text` are no formulas."""
    shown = broken(text, inches(axes))
    axes.set_title(shown, loc="left", color=INK, fontsize=11, pad=8, parse_math=False)


def tidy(axes: Axes) -> None:
    """Leave the axes nothing but a baseline and quiet horizontal lines."""
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(colors=QUIET, labelcolor=INK, length=0, which="both")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(QUIET)


def number_blocks(axes: Axes, names: Sequence[str], model: str) -> None:
    """Label the blocks by their own numbers, as many as can be read."""
    labels = block_labels(names)
    shown = PurePath(model).name if len(model) > _LONG_NAME else model
    axes.set_xlabel(plain(f"block of {shown}" if shown else "block"), color=INK, parse_math=False)
    axes.set_xlim(-0.6, len(names) - 0.4)
    most = _NARROW_TICKS if is_narrow(axes) else _TICKS
    axes.xaxis.set_major_locator(MaxNLocator(nbins=most, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda place, _: labels[round(place)] if 0 <= round(place) < len(labels) else "")
    )


def block_labels(names: Sequence[str]) -> list[str]:
    """The numbers in the names of blocks, or their places where the names have none."""
    short, prefix = block_numbers(names)
    return short if prefix else [str(place) for place in range(len(names))]


def legend_below(figure: Figure, entries: Sequence[Artist] | None = None) -> None:
    """Name what is drawn, or the `entries`, in a few rows under the picture."""
    drawn = entries or [handle for axes in figure.axes for handle in axes.get_legend_handles_labels()[0]]
    columns = legend_columns([str(handle.get_label()) for handle in drawn], figure.get_figwidth())
    legend = figure.legend(
        handles=drawn, frameon=False, ncols=columns, loc="outside lower center",
        labelcolor=INK, fontsize=9.5, handlelength=1.4, columnspacing=1.4,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


@dataclass(frozen=True)
class Panels:
    """Equal panels in rows and columns, and the room around them, in inches.

    The layout engine of matplotlib asks every label of every axes for its size, twice: where there are many
    panels of which all is known beforehand, that takes seconds.
    """

    n_rows: int
    columns: int
    width: float
    height: float
    above: float
    below: float
    left: float
    between_rows: float
    between_columns: float
    right: float = 0.12

    def figure(self) -> Figure:
        """A figure of the right size, laid out for `subplots`."""
        high = self.above + self.n_rows * self.height + (self.n_rows - 1) * self.between_rows + self.below
        gaps = self.between_columns * (self.columns - 1)
        panel = (self.width - self.left - self.right - gaps) / self.columns
        figure = Figure(figsize=(self.width, high))
        figure.subplots_adjust(
            left=self.left / self.width, right=1 - self.right / self.width,
            top=1 - self.above / high, bottom=self.below / high,
            hspace=self.between_rows / self.height, wspace=self.between_columns / panel,
        )  # fmt: skip
        return figure


def legend_height(labels: Sequence[str], width: float) -> float:
    """Inches that a legend takes below a picture."""
    return _ABOVE_LEGEND + _LEGEND_ROW * ceil(len(labels) / legend_columns(labels, width))


def legend_columns(labels: Sequence[str], width: float) -> int:
    """How many entries of a legend fit beside each other in a picture so many inches wide."""
    room = int(_LETTERS_PER_INCH * width / (max(map(len, labels)) + _LETTERS_OF_MARK))
    return max(1, min(_LEGEND_COLUMNS, room, len(labels)))


def paint_cells(
    axes: Axes, corners: Corners, values: Array, colours: ScalarMappable, *, are_many: bool
) -> None:
    """Cells in the colours of their values, [n, 4, 2] and [n]; NaN in the colour of what is bad.

    Thin lines are between them, thinner where they `are_many`. All cells of one shade are one path: a picture
    of thousands of cells stays small.
    """
    shades = np.array([to_hex(one) for one in colours.to_rgba(np.ma.masked_invalid(values))])
    codes = np.array([Outline.MOVETO, *[Outline.LINETO] * 3, Outline.CLOSEPOLY], np.uint8)
    closed = np.concatenate([corners, corners[:, :1]], axis=1)  # [n, 5, 2]
    found, width = np.unique(shades), 0.3 if are_many else 0.8
    paths = [
        Outline(closed[shades == shade].reshape(-1, 2), np.tile(codes, int((shades == shade).sum())))
        for shade in found
    ]
    axes.add_collection(PathCollection(paths, facecolors=list(found), edgecolors="white", linewidths=width))


def settle_bar(bar: Colorbar) -> None:
    """Take the frame off a bar of colours; as an image it could not follow the colours of a page."""
    bar.outline.set_visible(False)
    if bar.solids is not None:
        bar.solids.set_rasterized(rasterized=False)
        bar.solids.set_edgecolor("face")


def write_png(figure: Figure, path: Path) -> None:
    """Write the figure whole or not at all, always the same bytes for the same figure."""
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(
        picture, format="png", dpi=_DPI, metadata={"Software": PICTURE_SOFTWARE}
    )
    write_bytes(path, picture.getvalue())
