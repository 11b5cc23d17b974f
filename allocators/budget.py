"""The laws every budget obeys. Nothing is clamped or repaired after them.

Continuous: values lie in [low, high] and meet the weighted mean exactly.

On a grid: the budget is never exceeded, and what is left over is less than one step (the smallest distance of
two grid values) of the smallest group. Where no combination of grid values gets that close, the plan is the
one that leaves least over. Within that, both solvers are exact minimisers:

- `proportional`: the grid plan nearest to the continuous law v, i.e. least Σ n_i · (g_i - v_i)². For groups
  of equal size that is the method of largest remainders.
- `optimal`: the least expected error Σ importance_i · n_i · e(g_i), with an error model e per unit,
  see `expected_error`.

Of two groups of equal size the more important never gets less, and equal ones differ by one step at most
under `proportional`. Between groups of different size the same holds wherever the budget can still be met;
the budget comes first. What remains undecided goes to the group whose name sorts first (numbers by value), so
the order of the blocks in the file cannot matter.
"""

from collections.abc import Sequence
from math import floor, gcd

import numpy as np

from owl_compress.allocators.base import Curve, FloatArray, Group, natural_key, sizes, weighted_mean
from owl_compress.allocators.choice import Key, LevelChoice
from owl_compress.allocators.target import Target
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.errors import RequestError

_EQUAL = 1e-12
"""Values closer than this are the same value; also the relative rounding allowed in a sum of budgets."""


def continuous(curve: Curve, weights: FloatArray, mean: float, low: float, high: float) -> FloatArray:
    """The member of a monotone family that, clipped to [low, high], has exactly this weighted mean.

    Where the family jumps over the mean, every group takes the same fraction of its jump.

    Raises:
        RequestError: the mean is out of reach.
    """
    values = np.clip(curve(mean), low, high)
    if abs(weighted_mean(values, weights) - mean) > np.finfo(np.float64).eps:
        below, above = _bracket(curve, weights, mean, low, high)
        mean_below, mean_above = weighted_mean(below, weights), weighted_mean(above, weights)
        share = (mean - mean_below) / (mean_above - mean_below) if mean_above > mean_below else 0.0
        values = np.clip(below + share * (above - below), low, high)
    # A plan with one value states the target itself, not a neighbour that rounds to one weight less.
    return np.full_like(values, mean) if np.ptp(values) <= _EQUAL else values


def _bracket(
    curve: Curve, weights: FloatArray, mean: float, low: float, high: float
) -> tuple[FloatArray, FloatArray]:
    """Clipped values just below (or at) the mean and just above it: neighbouring arguments of the curve."""

    def clipped(argument: float) -> FloatArray:
        return np.clip(curve(argument), low, high)

    left, right, width = mean, mean, 1.0
    while width < 2.0**100 and weighted_mean(clipped(left), weights) > mean:
        left, width = mean - width, 2 * width
    width = 1.0
    while width < 2.0**100 and weighted_mean(clipped(right), weights) < mean:
        right, width = mean + width, 2 * width
    least, most = weighted_mean(clipped(left), weights), weighted_mean(clipped(right), weights)
    if not least <= mean + _EQUAL or not most >= mean - _EQUAL:
        raise RequestError(
            f"the average {mean:g} is out of reach: within [low {low:g}, high {high:g}] this allocator gives "
            f"{least:g} to {most:g}; change the target, or widen low and high"
        )
    while left < (middle := 0.5 * (left + right)) < right:
        if weighted_mean(clipped(middle), weights) <= mean:
            left = middle
        else:
            right = middle
    return clipped(left), clipped(right)


def proportional(groups: Sequence[Group], wanted: FloatArray, rank: FloatArray, target: Target) -> FloatArray:
    """The grid plan nearest to the values `wanted`, never over budget.

    `rank` decides between groups that want the same (0 everywhere: nothing to decide by).
    """
    levels = np.array(target.levels)
    cost = sizes(groups)[:, None] * (levels[None, :] - wanted[:, None]) ** 2  # [groups, levels]
    # Values equal up to rounding are equal wishes; both keys rise with what a group should keep.
    keys = list(zip(np.round(wanted, 12).tolist(), rank.tolist(), strict=True))
    return _least_cost(groups, cost, keys, target)


def optimal(groups: Sequence[Group], importance: FloatArray, target: Target) -> FloatArray:
    """The grid plan of least expected error, never over budget.

    Raises:
        RequestError: an importance is negative.
    """
    if importance.min() < 0:
        raise RequestError(
            f"solver 'optimal' weighs errors by importance, which is {importance.min():g} for "
            f"{groups[int(importance.argmin())].name}: use a metric that is never negative, or 'proportional'"
        )
    weight = importance / importance.max() if importance.max() > 0 else np.ones_like(importance)
    cost = (weight * sizes(groups))[:, None] * expected_error(np.array(target.levels), target.unit)[None, :]
    return _least_cost(groups, cost, [(value, 0.0) for value in weight.tolist()], target)


def expected_error(values: FloatArray, unit: Unit) -> FloatArray:
    """Expected squared error per weight of unit importance, up to a common factor.

    bits: 4^-bits. Uniform quantisation noise has variance step² / 12, and each bit halves the step.

    density: (1 - density)³. Scores spread evenly over [0, a] lose, with the smallest share s of them,
    ∫ x² dx = s³ · a² / 3 of their squares; near zero the scores of real linears are about that flat.
    """
    return 4.0**-values if unit is Unit.BITS else (1.0 - values) ** 3


def _least_cost(groups: Sequence[Group], cost: FloatArray, keys: Sequence[Key], target: Target) -> FloatArray:
    """One level per group, for `cost` [groups, levels] and keys that rise with what a group should keep."""
    levels = np.array(target.levels)
    if len(levels) == 1:
        return np.full(len(groups), levels[0])
    classes = _interchangeable(groups, keys)
    first = [members[0] for members in classes]
    weights = np.array([groups[i].n_weights for i in first], dtype=np.int64)
    counts = np.array([len(members) for members in classes], dtype=np.int64)
    divisor = gcd(*weights.tolist())
    # Whole numbers from here on: a level is kept weights of M, or bits; a budget is weights times levels.
    scale = target.grid.kept_of if isinstance(target.grid, KeptOfGrid) else 1
    budget = target.value * scale * (int(weights @ counts) // divisor)
    chosen = LevelChoice(
        cost=cost[first] / max(cost.max(), np.finfo(np.float64).tiny),
        members=counts,
        weights=weights // divisor,
        units=np.array([round(level * scale) for level in target.levels], dtype=np.int64),
        keys=tuple(keys[i] for i in first),
        most=floor(budget * (1 + _EQUAL)),
    ).solve()
    values = np.empty(len(groups))
    for members, row in zip(classes, chosen, strict=True):
        values[members] = np.repeat(levels, row)[::-1]
    return values


def _interchangeable(groups: Sequence[Group], keys: Sequence[Key]) -> list[list[int]]:
    """Groups of equal key and size, by name; the classes from the highest key to the lowest, then by name."""
    order = sorted(
        range(len(groups)), key=lambda i: (tuple(-key for key in keys[i]), natural_key(groups[i].name))
    )
    classes: dict[tuple[Key, int], list[int]] = {}
    for i in order:
        classes.setdefault((keys[i], groups[i].n_weights), []).append(i)
    return list(classes.values())
