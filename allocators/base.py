"""What an allocator is: from groups and a target to a monotone family of budgets, or to costs of levels."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from owl_compress.allocators.damage import DamageCurve
from owl_compress.allocators.target import Granularity, Target
from owl_compress.documents.report import LinearReport
from owl_compress.errors import RequestError, nearest

FloatArray = NDArray[np.float64]

Curve = Callable[[float], FloatArray]
"""One value per group, none of which falls when the argument rises.

Far to the left every value is at or below the lower bound, far to the right at or above the upper one. The
argument for which the mean meets the target is found by `budget.continuous`; the first one tried is the
target itself, so a law that keeps the mean by itself is left untouched.
"""


@dataclass(frozen=True, eq=False)
class OffBudget:
    """One value per group from a rule that does not keep the budget, and is wanted for exactly that."""

    values: FloatArray


@dataclass(frozen=True)
class LevelCosts:
    """The levels that each group may have, and what each of them costs: the least sum is wanted.

    No order is forced between groups, and each has levels of its own; see `knapsack.least_cost`.

    Attributes:
        levels: of each group, rising, and on the grid if the target has one.
        costs: at each of the levels, in one unit for all groups, finite.
    """

    levels: tuple[tuple[float, ...], ...]
    costs: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Group:
    """What gets one value: the linears of a block, one linear, or linears tied together.

    Attributes:
        name: of the block or linear.
        n_weights: weights that the value applies to.
        depth: index of its block in the order of execution.
        metrics: those of the block (granularity block), or of the linear; of tied linears the weighted mean.
        linears: the linears the value applies to.
        damage: of the group compressed alone, where the budgets are made from a sensitivity profile by an
            allocator that reads it; otherwise None.
    """

    name: str
    n_weights: int
    depth: int
    metrics: Mapping[str, float]
    linears: tuple[LinearReport, ...]
    damage: DamageCurve | None = None


@runtime_checkable
class Allocator(Protocol):
    """A frozen dataclass whose fields are the options a user may give."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    name: ClassVar[str]
    """As registered."""
    granularity: ClassVar[Granularity]
    """What it gives a value to unless the user says otherwise."""
    reads_scores: ClassVar[bool]
    """Whether it looks at measured metrics or histograms, and not at names and sizes alone."""

    # Further, where it follows somebody: `credit`, a ClassVar with the words for the model card, in Markdown.
    # And where it divides by the damages of a sensitivity profile: `reads_damage`, a ClassVar that is True.
    # Then it is given a profile and no report, its groups are parts of the profile, and they have `damage`.
    # And where `--allocator auto` is to try it: see `Tunable`.

    def settled(self, target: Target) -> Self:
        """The same allocator with every option that was left open (None) settled for this target.

        Raises:
            RequestError: an option has a value that cannot be meant for this target.
        """
        ...

    def curve(self, groups: Sequence[Group], target: Target) -> Curve | OffBudget | LevelCosts:
        """Budgets of `groups`; `target.value` is the mean these groups have to meet. Called when settled."""
        ...

    def importance(self, groups: Sequence[Group]) -> FloatArray | None:
        """Non-negative numbers in which the budgets are claimed never to fall, or None for no such claim.

        They are also what the solver `optimal` weighs errors with.
        """
        ...


@runtime_checkable
class Tunable(Protocol):
    """An allocator that says which of its settings are worth trying; then `--allocator auto` tries them."""

    @classmethod
    def settings_to_try(cls, target: Target) -> tuple[Allocator, ...]:
        """Itself with different options, the most promising first: a limit of cost leaves out the last."""
        ...


def reads_damage(allocator: Allocator | type[Allocator]) -> bool:
    """Whether it divides by the damages of a sensitivity profile; one that does not say does not."""
    return bool(getattr(allocator, "reads_damage", False))


def sizes(groups: Sequence[Group]) -> FloatArray:
    """Number of weights of each group."""
    return np.array([group.n_weights for group in groups], dtype=np.float64)


def weighted_mean(values: FloatArray, weights: FloatArray) -> float:
    """Mean of `values`, correctly rounded sums: the order of the groups cannot show in the last digit."""
    return fsum(values * weights) / fsum(weights)


def metric_values(groups: Sequence[Group], metric: str) -> FloatArray:
    """The metric of each group.

    Raises:
        RequestError: the report lacks it for some group; the nearest name that it has is offered.
    """
    for group in groups:
        if metric not in group.metrics:
            known = set(group.metrics).intersection(*(other.metrics for other in groups))
            hint = nearest(metric, known) if known else "it has none"
            # Whether there is such a metric at all is not known here, but for another number of one there is.
            is_sure = any(metric.partition("@")[:2] == name.partition("@")[:2] for name in known)
            again = (
                f"or measure again with --metric {metric}"
                if is_sure
                else "what measure --metric can add: owl-compress list metrics"
            )
            raise RequestError(f"the report has no metric {metric!r} for {group.name}: {hint} ({again})")
    return np.array([group.metrics[metric] for group in groups], dtype=np.float64)


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key in which layers.2 comes before layers.10."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts)
