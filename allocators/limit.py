"""The largest target whose plan stays within a limit on what plans are predicted to cost. Pure numbers.

It works with every allocator, which is asked for whole plans and for nothing else: halving finds where plans
begin to cost too much, and single steps settle what halving cannot see. On a grid of widths in bits or N:M
plans have finitely many averages, and one with a larger average may cost less where codes are padded; off a
grid a step is one weight.
"""

from collections.abc import Callable
from dataclasses import dataclass

from owl_compress.documents.plan import Plan
from owl_compress.errors import RequestError

_STEPS = 32
"""Averages above the one that halving found that are tried on a grid."""


@dataclass(frozen=True)
class Priced:
    """A plan, and what it is predicted to cost."""

    plan: Plan
    cost: float


@dataclass(frozen=True)
class Reach:
    """The averages that plans can have: from `low` to `high`, of which two differ by `step` at least.

    On a grid there are no others between; off one a step is what makes no difference any more.
    """

    low: float
    high: float
    step: float
    is_grid: bool


class OutOfReachError(RequestError):
    """Every plan costs more than the limit; `least` costs least of those that were made."""

    def __init__(self, least: Priced) -> None:
        super().__init__(f"the least that a plan costs is {least.cost:g}")
        self.least = least


PriceAt = Callable[[float], Priced]
"""Plan and cost of a target."""


def largest_within(price_at: PriceAt, limit: float, reach: Reach) -> Priced:
    """The plan of the largest target that costs at most `limit`.

    Args:
        price_at: plan and cost of a target. Cost is taken to rise with the target but for single steps. A
            target may be refused, below where plans begin or above where they end.
        limit: in the unit of the costs.
        reach: the targets that there are.

    Raises:
        RequestError: what the highest target is refused for, or all others.
        OutOfReachError: no plan costs so little.
    """
    highest = price_at(reach.high)
    if highest.cost <= limit:
        return highest
    low, high, least = reach.low, reach.high, highest
    below = _tried(price_at, low)
    if isinstance(below, Priced) and below.cost > limit:
        raise OutOfReachError(below)
    while high - low > reach.step / 2 and low < (middle := 0.5 * (low + high)) < high:
        found = _tried(price_at, middle)
        if isinstance(found, Priced) and found.cost > limit:
            least = found
        elif isinstance(found, Priced) or isinstance(below, RequestError):
            below, low = found, middle  # within the limit, or plans begin above it
            continue
        high = middle
    if isinstance(below, RequestError):
        raise below if least is highest else OutOfReachError(least)
    return _stepped_up(below, price_at, limit, reach) if reach.is_grid else below


def _stepped_up(start: Priced, price_at: PriceAt, limit: float, reach: Reach) -> Priced:
    """The best of the next averages above `start` that is within the limit, its target its very average."""
    best = start
    for index in range(1, _STEPS + 1):
        target = start.plan.achieved + index * reach.step
        found = _tried(price_at, target) if target < reach.high else None
        if isinstance(found, Priced) and found.cost <= limit and found.plan.achieved > best.plan.achieved:
            best = found
    exact = _tried(price_at, best.plan.achieved)
    if isinstance(exact, Priced) and exact.plan.budgets == best.plan.budgets:
        return exact
    return best


def _tried(price_at: PriceAt, target: float) -> Priced | RequestError:
    """What `target` comes to, or why it is refused."""
    try:
        return price_at(target)
    except RequestError as refusal:
        return refusal
