"""The house's style of pictures: ink, quiet lines, titles, and PNG files that are the same every time."""

import io
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from owl_compress.documents.disk import write_bytes
from owl_compress.documents.outputs import PICTURE_SOFTWARE
from owl_compress.documents.units import Unit
from owl_compress.pages.words import block_numbers
from owl_compress.plain_text import plain

Array = np.ndarray[tuple[int], np.dtype[np.float64]]

INK, QUIET, GRID, BAR = "#1f2933", "#7b8794", "#e4e7eb", "#f0b429"
LINES = ("#0b69a3", "#c52707", "#3f9142", "#8719e0", "#a1680c", "#0e7c86")
_LEGEND_COLUMNS = 4
GRID_TICKS = 8
"""Steps of a grid that is coarse enough for a tick at each."""
KEPT_WORDS = {
    Unit.DENSITY: "% of the weights kept",
    Unit.WIDTH: "% of the weights left",
    Unit.BITS: "bits of each block",
}
_DPI = 160
_TICKS, _LONG_NAME = 16, 40


def width_for(n_blocks: int) -> float:
    """Inches that so many blocks beside each other take."""
    return max(6.4, min(14.0, 2.2 + 0.26 * n_blocks))


def title(axes: Axes, text: str) -> None:
    """Say above the axes what they show; names in `text` are no formulas."""
    axes.set_title(plain(text), loc="left", color=INK, fontsize=11, pad=8, parse_math=False)


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
    axes.xaxis.set_major_locator(MaxNLocator(nbins=_TICKS, integer=True, min_n_ticks=1))
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
    legend = figure.legend(
        handles=drawn, frameon=False, ncols=min(len(drawn), _LEGEND_COLUMNS), loc="outside lower center",
        labelcolor=INK, fontsize=9.5, handlelength=1.4, columnspacing=1.4,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def write_png(figure: Figure, path: Path) -> None:
    """Write the figure whole or not at all, always the same bytes for the same figure."""
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(
        picture, format="png", dpi=_DPI, metadata={"Software": PICTURE_SOFTWARE}
    )
    write_bytes(path, picture.getvalue())
