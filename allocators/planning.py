"""From a report or a sensitivity profile, an allocator and a target to a plan."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import pairwise
from math import fsum

import numpy as np
from pydantic import JsonValue

from owl_compress.allocators.base import (
    Allocator,
    FloatArray,
    Group,
    LevelCosts,
    OffBudget,
    reads_damage,
    sizes,
)
from owl_compress.allocators.budget import continuous, optimal, proportional
from owl_compress.allocators.groups import Account, Partition, build_groups, partition
from owl_compress.allocators.knapsack import least_cost
from owl_compress.allocators.profiled import ProfiledModel, check_fits, part_groups, told
from owl_compress.allocators.target import Granularity, Target
from owl_compress.documents.plan import (
    ASKED_TARGET,
    ROUNDING,
    AllocatorRecord,
    LinearBudget,
    Plan,
    weighted_mean,
)
from owl_compress.documents.report import ImportanceReport, LinearReport
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.documents.units import KeptOfGrid, Unit, kept_weights
from owl_compress.errors import RequestError

_SHAPE_OPTIONS = ("lam", "law", "tau")
"""Options that shape the continuous law, which the solver `optimal` does without."""
_ROUNDING = 1e-12


Source = ImportanceReport | SensitivityProfile
"""What budgets are made from: metrics of all parts of a model, or damages of them."""


def make_plan(source: Source, allocator: Allocator, target: Target) -> Plan:
    """Divide the target over the linears of the source.

    Raises:
        RequestError: the request cannot be satisfied.
    """
    _check_source(source, allocator)
    _check_solver(allocator, target)
    settled = allocator.settled(target)
    model = ProfiledModel(source) if isinstance(source, SensitivityProfile) else source
    split = partition(model, target)
    groups, grouping = _groups(model, split, settled, target)
    values, keeps_budget = _solve(settled, groups, _target_of_free(model, split, target))
    chosen = dict(split.pinned) | {
        linear.name: value
        for group, value in zip(groups, values.tolist(), strict=True)
        for linear in group.linears
    }
    budgets = tuple(
        LinearBudget(
            name=linear.name, block=block.name, n_weights=linear.n_weights, value=chosen[linear.name]
        )
        for block in model.blocks
        for linear in block.linears
        if linear.name not in split.skipped
    )
    _check_kept(budgets, split, target)
    achieved = weighted_mean(budgets)
    drift = 0.0 if keeps_budget else achieved - target.value
    drifts = abs(drift) > ROUNDING * abs(target.value)
    more: dict[str, JsonValue] = {ASKED_TARGET: target.value, "drift": drift} if drifts else {}
    if isinstance(model, ProfiledModel):
        more |= told(model, chosen, target)
    return Plan(
        unit=target.unit,
        target=achieved if drifts else target.value,
        grid=target.grid,
        low=target.plan_low,
        high=target.plan_high,
        allocator=AllocatorRecord(
            name=settled.name, parameters=_parameters(settled, grouping, target) | more
        ),
        report=source.fingerprint,
        skipped=tuple(linear.name for linear in _linears(model) if linear.name in split.skipped),
        coverage=model.coverage,
        budgets=budgets,
    )


def _check_source(source: Source, allocator: Allocator) -> None:
    """Refuse an allocator that reads what the document does not hold."""
    if isinstance(source, SensitivityProfile):
        if allocator.reads_scores:
            raise RequestError(
                f"allocator {allocator.name!r} reads the metrics of a report, and this is a sensitivity "
                "profile: give it the report that measure writes, or leave the allocator open"
            )
    elif reads_damage(allocator):
        raise RequestError(
            f"allocator {allocator.name!r} reads the damages of a sensitivity profile, and this is a report: "
            "give it the profile that sensitivity writes, or name another allocator"
        )


def _groups(
    model: ImportanceReport | ProfiledModel, split: Partition, allocator: Allocator, target: Target
) -> tuple[tuple[Group, ...], dict[str, JsonValue]]:
    """What gets one value each, and how the plan says that they were formed."""
    if isinstance(model, ProfiledModel) and reads_damage(allocator):
        check_fits(model.profile, target)
        asked = target.granularity
        record: dict[str, JsonValue] = {} if asked is None else {"granularity": asked}
        # Linears that are tied may lie in different parts, which are joined then.
        is_tied = target.unit is Unit.BITS and asked != "block"
        return part_groups(model, split, asked, target), record | ({"tie": target.tie} if is_tied else {})
    granularity = _granularity(allocator, target)
    record = {"granularity": granularity}
    is_tied = target.unit is Unit.BITS and granularity == "linear"
    return build_groups(model, split, granularity, target), record | ({"tie": target.tie} if is_tied else {})


def _check_kept(budgets: Sequence[LinearBudget], split: Partition, target: Target) -> None:
    """Refuse budgets that round to nothing kept where nobody asked for that.

    Raises:
        RequestError: no linear would keep a weight; or some on a grid would not, and neither a pin nor a
            lower bound of the user's allows it.
    """
    if target.unit is not Unit.DENSITY:
        return  # bits always keep something, and widths are rounded by whoever removes
    emptied = [budget for budget in budgets if _n_kept(budget, target) == 0]
    # Off a grid a law may come down to nothing in places; the result tells which linears that left empty.
    is_unasked = target.low is None and target.grid is not None
    unasked = [budget for budget in emptied if is_unasked and budget.name not in split.pinned]
    if len(emptied) < len(budgets) and not unasked:
        return
    first = (unasked or emptied)[0]
    allow = "" if len(emptied) == len(budgets) else ", leave it out with --skip, or allow it with --low 0"
    raise RequestError(
        f"{len(emptied)} of {len(budgets)} linears would keep nothing, the first {first.name}: a density of "
        f"{first.value:.3g} is less than one of its {first.n_weights:,} weights: ask for more{allow}"
    )


def _n_kept(budget: LinearBudget, target: Target) -> int:
    if isinstance(target.grid, KeptOfGrid):
        return target.grid.kept(budget.value)
    return kept_weights(budget.value, budget.n_weights)


def _linears(model: Account) -> list[LinearReport]:
    return [linear for block in model.blocks for linear in block.linears]


def _granularity(allocator: Allocator, target: Target) -> Granularity:
    if target.granularity is not None:
        return target.granularity
    # Attention and FFN of a block lose the same share unless that is asked for.
    return "block" if target.unit is Unit.WIDTH else allocator.granularity


def _check_solver(allocator: Allocator, target: Target) -> None:
    if target.solver != "optimal":
        return
    if reads_damage(allocator):
        raise RequestError(
            f"solver 'optimal' weighs expected errors by importance, and {allocator.name} has damages that "
            "were measured and a solver for them: drop --solver"
        )
    options = asdict(allocator)
    for name in _SHAPE_OPTIONS:
        if options.get(name) is not None:
            raise RequestError(
                f"solver 'optimal' decides by importance alone and makes no use of {name} {options[name]!r}: "
                "drop it, or use solver 'proportional'"
            )


def _target_of_free(model: Account, split: Partition, target: Target) -> Target:
    """The target of the linears that are neither skipped nor pinned: what the pins leave over."""
    counted = [linear for linear in _linears(model) if linear.name not in split.skipped]
    pinned = [linear for linear in counted if linear.name in split.pinned]
    if not pinned:
        return target
    spent = sum((Fraction(split.pinned[linear.name]) * linear.n_weights for linear in pinned), Fraction(0))
    n_all = sum(linear.n_weights for linear in counted)
    n_free = n_all - sum(linear.n_weights for linear in pinned)
    left = Fraction(target.value) * n_all - spent
    if n_free == 0:
        _check_all_pinned(float(spent / n_all), counted, target)
        return target
    mean = float(left / n_free)
    low, high = target.plan_low, target.plan_high
    if mean <= 0 or not low - _ROUNDING <= mean <= high + _ROUNDING:
        side, remedy = (
            ("below low", "pin less or raise") if mean < high else ("above high", "pin more or lower")
        )
        bound = low if mean < high else high
        raise RequestError(
            f"what is set by --set leaves an average of {mean:.4g} {target.unit} for the rest, "
            f"{side} {bound:g}: {remedy} the target {target.value:g}"
        )
    return replace(target, value=min(max(mean, low), high), pins={})


def _check_all_pinned(mean: float, linears: Sequence[LinearReport], target: Target) -> None:
    """With nothing left to decide, the pins themselves have to spend the budget."""
    smallest = min(linear.n_weights for linear in linears) / sum(linear.n_weights for linear in linears)
    step = smallest * min((b - a for a, b in pairwise(target.levels)), default=0.0)
    if not -_ROUNDING <= target.value - mean < max(step, _ROUNDING):
        raise RequestError(
            f"every linear is set by --set, to an average of {mean:.6g} {target.unit}, and the target is "
            f"{target.value:g}: make them equal"
        )


def _solve(allocator: Allocator, groups: Sequence[Group], target: Target) -> tuple[FloatArray, bool]:
    """One value per group, and whether the budget laws hold for them."""
    low, high = target.solver_bounds
    if not groups or (target.value >= high and not reads_damage(allocator)):
        return np.full(len(groups), high), True
    importance = allocator.importance(groups)
    if target.solver == "optimal":
        if importance is None:
            raise RequestError(
                f"solver 'optimal' needs an importance, which {allocator.name} does not define: "
                "use 'proportional'"
            )
        return optimal(groups, importance, target), True
    curve = allocator.curve(groups, target)
    if isinstance(curve, OffBudget):
        return curve.values, False
    if isinstance(curve, LevelCosts):
        return least_cost(groups, curve, target), True
    values = continuous(curve, sizes(groups), target.value, low, high)
    if target.grid is None:
        return _no_worse_than_equal(values, groups, target) if reads_damage(allocator) else values, True
    rank = np.zeros(len(groups)) if importance is None else importance
    return proportional(groups, values, rank, target), True


def _no_worse_than_equal(values: FloatArray, groups: Sequence[Group], target: Target) -> FloatArray:
    """`values`, or equal shares if these do less damage: curves that are not convex were taken for such."""
    curves = [group.damage for group in groups if group.damage is not None]
    if any(not curve.levels[0] <= target.value <= curve.levels[-1] for curve in curves):
        return values
    equal = np.full(len(groups), target.value)
    damages = [
        fsum(curve.at(value) for curve, value in zip(curves, shares.tolist(), strict=True))
        for shares in (equal, values)
    ]
    return equal if damages[0] < damages[1] else values


def _parameters(allocator: Allocator, grouping: dict[str, JsonValue], target: Target) -> dict[str, JsonValue]:
    options = asdict(allocator)
    if target.solver == "optimal":
        options = {name: value for name, value in options.items() if name not in _SHAPE_OPTIONS}
    parameters: dict[str, JsonValue] = options | grouping
    if target.grid is not None and not reads_damage(allocator):
        parameters["solver"] = target.solver
    if target.pins:
        parameters["set"] = dict(target.pins)
    if target.skips:
        parameters["skip"] = list(target.skips)
    return parameters
