"""The picture of what compression changed: the relative error of every block, and of the linears in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from owl_compress.documents.result import LinearResult
from owl_compress.pages.drawing import LINES, Array, legend_below, number_blocks, tidy, title
from owl_compress.plain_text import plain

_MARKERS = "os^Dv<>P"
_SPAN = 30.0
"""Largest over least from which the scale is logarithmic."""


@dataclass(frozen=True)
class Errors:
    """Relative errors of one result: mean over the weights, least and largest in each block, [blocks]."""

    label: str
    means: Array
    least: Array
    largest: Array

    @classmethod
    def of(cls, label: str, linears: Sequence[LinearResult], blocks: Sequence[str]) -> "Errors":
        """From the rows of a result; NaN for a block that was left alone."""
        members: dict[str, list[LinearResult]] = {}
        for one in linears:
            members.setdefault(one.block, []).append(one)
        rows = np.full((3, len(blocks)), np.nan)
        for column, name in enumerate(blocks):
            if name in members:
                errors = np.array([one.relative_error for one in members[name]])
                weights = np.array([one.n_weights for one in members[name]], float)
                rows[:, column] = errors @ weights / weights.sum(), errors.min(), errors.max()
        return cls(label, *rows)


def errors_figure(errors: Sequence[Errors], blocks: Sequence[str], model: str, width: float) -> Figure:
    """A mark at the mean of each block, with a line from the least to the largest of its linears."""
    figure = Figure(figsize=(width, 3.0 + 0.25 * (len(errors) > 1)))
    figure.set_layout_engine("constrained", h_pad=0.08, w_pad=0.08)
    axes = figure.subplots()
    tidy(axes)
    step = min(0.18, 0.7 / len(errors))
    for place, one in enumerate(errors):
        colour = LINES[place % len(LINES)]
        x = np.arange(len(blocks)) + step * (place - (len(errors) - 1) / 2)
        axes.vlines(x, one.least, one.largest, color=colour, linewidth=1.4, alpha=0.45)
        axes.plot(
            x, one.means, linestyle="none", color=colour, markersize=4.5, markeredgewidth=0,
            marker=_MARKERS[place % len(_MARKERS)], label=plain(one.label),
        )  # fmt: skip
    least = min(float(np.nanmin(one.least)) for one in errors)
    largest = max(float(np.nanmax(one.largest)) for one in errors)
    if least > 0 and largest > _SPAN * least:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=8))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=min(0.0, least))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    title(axes, "Relative error: the mean of each block, and its linears from least to largest")
    number_blocks(axes, blocks, model)
    if len(errors) > 1:
        legend_below(figure)
    return figure
