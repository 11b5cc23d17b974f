"""Scales and colours of the picture of damage: depth of a block, damage, level, and the ticks at them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log10
from typing import Self

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.pages.curves import Heights, Panel
from owl_compress.pages.drawing import block_labels

NO_DAMAGE = "#f6e7c1"
"""The colour of a level that does no damage."""


@dataclass(frozen=True)
class Scales:
    """What all panels of one picture share."""

    unit: Unit
    grid: KeptOfGrid | None
    blocks: tuple[str, ...]
    heights: Heights
    depth_colours: ListedColormap
    depth: BoundaryNorm
    damage_colours: Colormap
    damage: Normalize

    @classmethod
    def of(cls, profile: SensitivityProfile, panels: Sequence[Panel]) -> Self:
        """For the parts of a profile."""
        heights = Heights.of(panels)
        n_blocks = len(profile.blocks)
        # The yellow end of the one is lost on white, the white end of the other too.
        depth = ListedColormap(mpl.colormaps["viridis"](np.linspace(0, 0.9, n_blocks)))
        damage = ListedColormap(mpl.colormaps["Blues"](np.linspace(0.1, 1, 256)))
        ends = (heights.least, max(heights.top, heights.least * (1 + 1e-9)))
        return cls(
            profile.unit, profile.grid, profile.blocks, heights,
            depth, BoundaryNorm(np.arange(n_blocks + 1) - 0.5, n_blocks),
            damage.with_extremes(bad=NO_DAMAGE),
            LogNorm(*ends) if heights.is_logarithmic else Normalize(heights.foot, heights.top),
        )  # fmt: skip

    def level_in_words(self, level: float) -> str:
        """As a tick says it: "30 %", "3:8", "2"."""
        if self.unit is Unit.BITS:
            return f"{level:g}"
        if self.grid is not None:
            return f"{level * self.grid.kept_of:.3g}:{self.grid.kept_of}"
        return f"{100 * level:.3g} %"

    def tick_levels(self, axis: Axis, panel: Panel, most: int) -> None:
        """At most so many ticks: at the levels themselves where these are coarse, else at round ones."""
        if self.grid is not None:
            step = ceil(self.grid.kept_of / most)
            axis.set_major_locator(FixedLocator(list(self.grid.values()[::step])))
        elif len(panel.levels) == 1 or (self.unit is Unit.BITS and len(panel.levels) <= most):
            axis.set_major_locator(FixedLocator(list(panel.levels)))
        else:
            axis.set_major_locator(MaxNLocator(nbins=most, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda level, _: self.level_in_words(level)))


def tick_damage(axis: Axis, heights: Heights, most: int) -> None:
    """Plain numbers on the scale, and at its foot that there is none."""
    if heights.is_logarithmic:
        decades = log10(heights.top / heights.least)
        subs = (1.0,) if decades > 2 else (1.0, 2.0, 5.0)
        found = LogLocator(subs=subs, numticks=most).tick_values(heights.least, heights.top)
        ticks = [tick for tick in found if heights.least <= tick <= heights.top] or [
            heights.least,
            heights.top,
        ]
        axis.set_major_locator(
            FixedLocator([*ticks, heights.foot] if heights.foot < heights.least else ticks)
        )
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda damage, _: _damage_in_words(damage, heights)))


def _damage_in_words(damage: float, heights: Heights) -> str:
    if heights.is_logarithmic and damage < heights.least * (1 - 1e-9):
        return "none"
    return np.format_float_positional(damage, precision=4, fractional=False, trim="-")


def tick_depth(axes: Axes, blocks: Sequence[str]) -> None:
    """The numbers of the blocks at their colours, the first on top."""
    labels = block_labels(blocks)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda at, _: labels[round(at)] if 0 <= round(at) < len(labels) else "")
    )
    axes.invert_yaxis()
