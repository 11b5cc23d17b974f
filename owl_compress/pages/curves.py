"""Damage curves of a profile, ready to be drawn: by what the parts are, in the order of the blocks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import fsum
from typing import Self

import numpy as np

from owl_compress.documents.plan import LinearBudget
from owl_compress.documents.roles import fused_role, sublayer_of
from owl_compress.documents.sensitivity import Measure, PartDamage, PartKind, SensitivityProfile
from owl_compress.documents.units import Unit

Array = np.ndarray[tuple[int], np.dtype[np.float64]]
Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]

MEASURES_IN_WORDS = {
    Measure.KL: "KL divergence from the dense model, nats per token",
    Measure.LOSS: "loss beyond the dense model's, nats per token",
    Measure.OUTPUT_ERROR: "relative error of the block's output",
    Measure.FISHER: "second order of the KL divergence (Fisher), nats per token",
}
"""What damage is, in the words of an axis."""

_FEWEST_FOR_MEDIAN, _FEWEST_LEVELS = 5, 2
_FOOT = 0.6
"""What is not above zero is drawn at this share of the least damage that is."""

_NOTHING = 1e-100
"""What is no more is drawn as none: a picture has no place for it."""

_SPAN = 1e-6
"""Share of the largest damage below which differences are rounding."""


@dataclass(frozen=True)
class Curve:
    """One part at the levels where its damage was measured, the part as it is left out.

    Attributes:
        part: as in the profile.
        block: place of its block among the blocks.
        left, right: the share of the block's column that is its own: [block - 0.5, block + 0.5] where it is
            the only one of its panel in the block.
        levels, damage: each [n], levels rising.
    """

    part: PartDamage
    block: int
    left: float
    right: float
    levels: Array
    damage: Array

    def level_in(self, budgets: Mapping[str, LinearBudget]) -> float | None:
        """The level that a plan gives it: the mean over its weights; None where the plan leaves it alone."""
        members = [budgets[name] for name in self.part.linears if name in budgets]
        if not members:
            return None
        return fsum(one.n_weights * one.value for one in members) / sum(one.n_weights for one in members)


@dataclass(frozen=True)
class Panel:
    """Parts that are of one kind and lie in different blocks, such as all attentions."""

    name: str
    curves: tuple[Curve, ...]

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """All levels at which any of the parts was measured, rising."""
        return tuple(sorted({round(float(level), 9) for curve in self.curves for level in curve.levels}))


@dataclass(frozen=True)
class Heights:
    """The scale of damage: logarithmic, unless no damage is above zero.

    Attributes:
        least, top: the ends of the scale.
        foot: where all lies that is below `least`, down to damages below zero.
    """

    foot: float
    least: float
    top: float
    is_logarithmic: bool

    @classmethod
    def of(cls, panels: Iterable[Panel]) -> Self:
        """Of all that is to be drawn."""
        damage = np.concatenate([curve.damage for panel in panels for curve in panel.curves] or [np.zeros(0)])
        above = damage[damage > _NOTHING]
        if not above.size:
            lowest = float(damage.min(initial=0.0)) or -1.0
            return cls(lowest, lowest, 0.0, is_logarithmic=False)
        top = float(above.max())
        least = max(float(above.min()), _SPAN * top)
        is_all = bool((damage >= least).all())
        return cls(least if is_all else _FOOT * least, least, top, is_logarithmic=True)

    def is_on_scale(self, damage: Array) -> Mask:
        """Which of the damages are large enough to be told apart, [n]."""
        return damage >= self.least

    def heights(self, damage: Array) -> Array:
        """Where the damage is drawn, [n] -> [n]."""
        return np.where(self.is_on_scale(damage), damage, self.foot)

    def between(self, curve: Curve, levels: Sequence[float]) -> Array:
        """Heights of the drawn line of a curve at any levels, [n]; NaN off its span."""
        heights = self.heights(curve.damage)
        drawn = np.log(heights) if self.is_logarithmic else heights
        found = np.interp(levels, curve.levels, drawn, left=np.nan, right=np.nan)
        return np.asarray(np.exp(found) if self.is_logarithmic else found)


def panels_of(profile: SensitivityProfile) -> tuple[Panel, ...]:
    """The parts of a profile by what they are, in the order in which they are first met."""
    roles = {linear.name: linear.role for linear in profile.linears}
    place = {name: index for index, name in enumerate(profile.blocks)}
    kinds: dict[str, dict[str, list[PartDamage]]] = {}
    for part in profile.parts:
        by_block = kinds.setdefault(_kind_in_words(part, roles[part.linears[0]]), {})
        by_block.setdefault(part.block, []).append(part)
    return tuple(
        Panel(
            name,
            tuple(
                _curve(part, place[block], (index, len(parts)), profile.unit)
                for block, parts in sorted(by_block.items(), key=lambda pair: place[pair[0]])
                for index, part in enumerate(parts)
            ),
        )
        for name, by_block in kinds.items()
    )


def _kind_in_words(part: PartDamage, role: str) -> str:
    if part.kind is PartKind.BLOCK:
        return "blocks"
    if part.kind is PartKind.SUBLAYER:
        return sublayer_of(role)
    if part.kind is PartKind.TIED:
        return fused_role(role) or role
    return role


def _curve(part: PartDamage, block: int, share: tuple[int, int], unit: Unit) -> Curve:
    """`share` is which of how many parts of its kind it is in the block."""
    index, count = share
    levels, damage = np.asarray(part.levels, float), np.asarray(part.damage, float)
    is_compressed = np.ones(len(levels), bool) if unit is Unit.BITS else levels < 1
    left = block - 0.5 + index / count
    return Curve(part, block, left, left + 1 / count, levels[is_compressed], damage[is_compressed])


def median_of(panel: Panel, heights: Heights) -> tuple[Array, Array] | None:
    """Levels and the median height there, over the parts that reach them; None where there are too few.

    It ends where half of the parts are at the foot.
    """
    lines = [heights.between(curve, panel.levels) for curve in panel.curves if curve.levels.size]
    if len(lines) < _FEWEST_FOR_MEDIAN or len(panel.levels) < _FEWEST_LEVELS:
        return None
    rows = np.stack(lines)  # [parts, levels]
    reached = np.flatnonzero(np.isfinite(rows).sum(axis=0) * 2 > len(lines))
    middle = np.nanmedian(rows[:, reached], axis=0)
    is_drawn = heights.is_on_scale(middle)
    return np.asarray(panel.levels)[reached][is_drawn], middle[is_drawn]


def cells_of(curve: Curve, unit: Unit) -> Array:
    """Corners of the cells of a part in the map of blocks and levels, [levels, 4, 2].

    Cells meet in the middle between two levels; those at the ends reach as far outwards as inwards.
    """
    levels = curve.levels
    if not levels.size:
        return np.zeros((0, 4, 2))
    usual = 1.0 if unit is Unit.BITS else 0.1
    middles = (levels[1:] + levels[:-1]) / 2
    first = middles[0] - levels[0] if middles.size else usual / 2
    last = levels[-1] - middles[-1] if middles.size else usual / 2
    edges = np.concatenate([[levels[0] - first], middles, [levels[-1] + last]])
    if unit is not Unit.BITS:
        edges = np.clip(edges, 0, 1)
    low, high = edges[:-1], edges[1:]
    left, right = np.full_like(low, curve.left), np.full_like(low, curve.right)
    corners = [(left, low), (right, low), (right, high), (left, high)]
    return np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1)
