"""Damage as a curve over the levels of one group: fitted to what was measured, read between the levels.

Fit: damages that do not fall as the level rises are noise, and are pooled until they do (isotonic regression
by pool adjacent violators, all points of equal weight; Ayer et al. 1955). What is below 0 afterwards, as the
measure `loss` may be, is 0. In density and width, level 1 is the group as it is: its damage is 0, no noise.

Between the levels, which only a density off a grid needs: log damage is a straight line in log(1 - level), a
power law of the share removed. From the last level with damage to the first without (level 1, or the end e of
a flat piece) the law is d · ((e - level) / (e - last))^p, with the p of the piece before, at least 1; with
nothing before it, 3, by which the squared error grows where scores near zero are spread evenly (see
`budget.expected_error`). Nothing is told below the lowest level or above the highest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from owl_compress.documents.units import Unit

_FloatArray = NDArray[np.float64]

_LEAST_POWER, _POWER = 1.0, 3.0


@dataclass(frozen=True)
class DamageCurve:
    """What compressing one group alone to a level does to the output of the model.

    Attributes:
        levels: rising, each of them measured; a larger one keeps more.
        damage: at each level; none is negative, and none is more than the one before.
    """

    levels: tuple[float, ...]
    damage: tuple[float, ...]

    @cached_property
    def by_level(self) -> dict[float, float]:
        """Damage by measured level."""
        return dict(zip(self.levels, self.damage, strict=True))

    def at(self, level: float) -> float:
        """Damage at one density within the span of the levels."""
        return float(self.between(np.array([level]))[0])

    def between(self, levels: _FloatArray) -> _FloatArray:
        """Damage at densities within the span of the levels; see above for the law."""
        known, damage = np.array(self.levels), np.array(self.damage)
        n_positive = int(np.count_nonzero(damage))
        if n_positive == 0:
            return np.zeros_like(levels)
        removed = np.log1p(-known[:n_positive])
        found: _FloatArray = np.zeros_like(levels)
        inside = levels <= known[n_positive - 1]
        # np.interp wants rising places, and the share removed falls as the level rises.
        found[inside] = np.exp(
            np.interp(np.log1p(-levels[inside]), removed[::-1], np.log(damage[:n_positive])[::-1])
        )
        if n_positive < len(known):
            last, end = known[n_positive - 1], known[n_positive]
            piece = ~inside & (levels < end)
            rest = (end - levels[piece]) / (end - last)
            found[piece] = damage[n_positive - 1] * rest ** self._power(n_positive)
        return found

    def _power(self, n_positive: int) -> float:
        """Of the piece that ends without damage."""
        if n_positive == 1:
            return _POWER
        first, second = self.levels[n_positive - 2 : n_positive]
        more, less = self.damage[n_positive - 2 : n_positive]
        fall = float(np.log(more) - np.log(less))
        return max(_LEAST_POWER, fall / float(np.log1p(-first) - np.log1p(-second)))


def fit(levels: Sequence[float], measured: Sequence[float], unit: Unit) -> DamageCurve:
    """The curve for damages as they were measured."""
    is_share = unit is not Unit.BITS
    n_free = len(levels) - (is_share and levels[-1] == 1)
    damage = [max(value, 0.0) for value in never_rising(measured[:n_free])]
    return DamageCurve(tuple(levels), (*damage, *[0.0] * (len(levels) - n_free)))


def never_rising(values: Sequence[float]) -> list[float]:
    """The nearest numbers, by the sum of squares, of which none is more than the one before."""
    pools: list[tuple[float, int]] = []  # mean and number of values
    for value in values:
        mean, count = value, 1
        while pools and pools[-1][0] < mean:
            before, n_before = pools.pop()
            mean = (before * n_before + mean * count) / (n_before + count)
            count += n_before
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]


def joined(curves: Sequence[DamageCurve], *, is_continuous: bool) -> DamageCurve | None:
    """The sum of the curves at the levels common to all, which between levels are all within every span.

    Returns:
        None where the levels in common leave nothing to choose, as the curves by themselves did.
    """
    if len(curves) == 1:
        return curves[0]
    if not is_continuous:
        common = sorted(set.intersection(*(set(curve.levels) for curve in curves)))
        sums = [sum(curve.by_level[level] for curve in curves) for level in common]
    else:
        low = max(curve.levels[0] for curve in curves)
        high = min(curve.levels[-1] for curve in curves)
        every = sorted({level for curve in curves for level in curve.levels})
        common = [level for level in every if low <= level <= high]
        sums = np.sum([curve.between(np.array(common)) for curve in curves], axis=0).tolist()
    fewest = min(2, *(len(curve.levels) for curve in curves))
    return DamageCurve(tuple(common), tuple(sums)) if len(common) >= fewest else None
