"""Budgets that make the sum of measured damages least."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from owl_compress.allocators.base import Curve, FloatArray, Group, LevelCosts, sizes, weighted_mean
from owl_compress.allocators.damage import DamageCurve
from owl_compress.allocators.knapsack import out_of_span
from owl_compress.allocators.target import Granularity, Target
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError

_POINTS = 513
"""Of each group's curve, evenly spaced, besides the levels that were measured."""
_ROUNDING = 1e-12
_FREE = 1000.0
"""The argument from which on budget is given where it avoids no damage: no price of a double is that low."""


@dataclass(frozen=True)
class Sensitivity:
    """The least sum of the damages that a sensitivity profile measured, part by part, under the budget.

    Damages of parts are taken to add up, as where bits are chosen by an integer program (HAWQ-V3, arXiv
    2011.10680); EvoPress (arXiv 2410.14649) has cases where they do not. Here they are measured at the output
    of the model, each level by itself, and no order of importance is assumed. How damages are fitted and read
    between levels is said in `owl_compress.allocators.damage`.

    - On a grid, and for widths, which go by whole heads and channels: every group gets one of the levels it
      was measured at, and the sum is the least there is (`owl_compress.allocators.knapsack`).
    - Densities off a grid: every group's curve is replaced by its lower convex hull, and all of them keep
      weights up to one price, the damage that a further weight would avoid (Lagrange's multiplier). The price
      is the one that meets the mean exactly. Where hulls have a straight piece at that price, all groups go
      the same share of it. Where a curve lies above its hull that is not the least sum; equal shares are
      taken where they do less.

    No group gets less than its lowest measured level. A bound that the user gives is kept, and refused where
    nothing was measured down to it.
    """

    name: ClassVar[str] = "sensitivity"
    granularity: ClassVar[Granularity] = "block"
    reads_scores: ClassVar[bool] = False
    reads_damage: ClassVar[bool] = True

    @classmethod
    def settings_to_try(cls, target: Target) -> tuple[Self, ...]:  # noqa: ARG003  # the protocol's signature
        """Itself: it has no options."""
        return (cls(),)

    def settled(self, target: Target) -> Self:  # noqa: ARG002  # the protocol's signature
        """Has no options."""
        return self

    def curve(self, groups: Sequence[Group], target: Target) -> Curve | LevelCosts:
        """Off a grid, budgets by a price that falls as the argument rises; else the damage of each level.

        Raises:
            RequestError: the target or its bounds lie outside what was measured.
        """
        curves = [_damage_of(group) for group in groups]
        _check_low(groups, curves, target)
        if not target.is_continuous:
            allowed = [_allowed(*pair, target) for pair in zip(groups, curves, strict=True)]
            costs = [
                tuple(damage.by_level[level] for level in levels)
                for damage, levels in zip(curves, allowed, strict=True)
            ]
            return LevelCosts(tuple(allowed), tuple(costs))
        return _by_price(groups, curves, target)

    def importance(self, groups: Sequence[Group]) -> None:  # noqa: ARG002
        """None: a curve is no single number."""
        return


def _damage_of(group: Group) -> DamageCurve:
    if group.damage is None:
        raise RequestError(f"there is no damage of {group.name}: allocate from a sensitivity profile")
    return group.damage


def _check_low(groups: Sequence[Group], curves: Sequence[DamageCurve], target: Target) -> None:
    """Refuse a lower bound of the user's down to which nothing was measured.

    Of widths, one part that was measured so low is enough: of others a single head may be more than that.
    """
    if target.low is None:
        return
    lowest = [(damage.levels[0], group.name) for group, damage in zip(groups, curves, strict=True)]
    level, name = min(lowest) if target.unit is Unit.WIDTH else max(lowest)
    if max(target.low, target.solver_bounds[0]) < level:
        raise RequestError(
            f"low {target.low:g} is below {level:g}, the lowest level measured of {name}: "
            f"raise low, or measure levels down to {target.solver_bounds[0]:g}"
        )


def _allowed(group: Group, damage: DamageCurve, target: Target) -> tuple[float, ...]:
    """The measured levels of a group that the target allows."""
    on_grid = set(target.levels)
    low, high = target.solver_bounds
    found = tuple(
        level for level in damage.levels if low <= level <= high and (not on_grid or level in on_grid)
    )
    if not found:
        measured = ", ".join(f"{level:g}" for level in damage.levels)
        raise RequestError(
            f"no level measured of {group.name} ({measured}) is among those allowed, {low:g} to {high:g}: "
            "widen them with --low and --high, or measure one of them"
        )
    return found


def _by_price(groups: Sequence[Group], curves: Sequence[DamageCurve], target: Target) -> Curve:
    """The family of the Lagrange multiplier: one more weight is kept where it avoids at least exp(-argument).

    Damages are in units of the largest of all, so that a price is a price for any model.
    """
    largest = max(damage.damage[0] for damage in curves) or 1.0
    vertices: list[FloatArray] = []
    prices: list[FloatArray] = []
    for group, damage in zip(groups, curves, strict=True):
        levels, values = _hull(*_sampled(group, damage, target))
        saved = -np.diff(values) / largest / (group.n_weights * np.diff(levels))
        with np.errstate(divide="ignore"):
            price = np.minimum(-np.log(np.maximum(saved, 0.0)), _FREE)
        vertices.append(levels)
        prices.append(np.maximum.accumulate(price))
    for pick, is_below in ((0, True), (-1, False)):
        end = weighted_mean(np.array([levels[pick] for levels in vertices]), sizes(groups))
        if (end - target.value if is_below else target.value - end) > _ROUNDING:
            raise out_of_span(target, end, is_below=is_below)

    def curve(argument: float) -> FloatArray:
        reached = [int(np.searchsorted(price, argument, side="right")) for price in prices]
        return np.array([levels[k] for levels, k in zip(vertices, reached, strict=True)])

    return curve


def _sampled(group: Group, damage: DamageCurve, target: Target) -> tuple[FloatArray, FloatArray]:
    """The curve of a group within the bounds, at even steps and at the measured levels."""
    low, high = max(damage.levels[0], target.plan_low), min(damage.levels[-1], target.plan_high)
    if len(damage.levels) < 2 or low > high:
        raise RequestError(
            f"the levels measured of {group.name} span {damage.levels[0]:g} to {damage.levels[-1]:g}: "
            f"densities off a grid need two at least, within {target.plan_low:g} to {target.plan_high:g}"
        )
    measured = [level for level in damage.levels if low <= level <= high]
    levels = np.unique(np.concatenate([np.linspace(low, high, _POINTS), measured]))
    return levels, damage.between(levels)


def _hull(levels: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The vertices of the lower convex hull of a curve (monotone chain, Andrew 1979)."""
    kept: list[tuple[float, float]] = []
    for x, y in zip(levels.tolist(), values.tolist(), strict=True):
        while len(kept) > 1:
            (x0, y0), (x1, y1) = kept[-2:]
            if (y1 - y0) * (x - x0) < (y - y0) * (x1 - x0):
                break
            kept.pop()
        kept.append((x, y))
    hull = np.array(kept)
    return hull[:, 0], hull[:, 1]
