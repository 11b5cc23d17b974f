"""One level up or down from where a plan stands."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count

from owl_compress.documents.plan import Plan
from owl_compress.documents.units import BIT_WIDTHS, Unit
from owl_compress.errors import RequestError

_USUAL_STEP = {Unit.DENSITY: 0.05, Unit.WIDTH: 0.1}
"""Off a grid: how far a part moves at a time, where nobody says."""

_LEAST_STEP, _MOST_STEP = 1e-3, 0.5
_FEWEST = 2


@dataclass(frozen=True)
class Steps:
    """The levels that budgets of a plan may have, and which is next to which.

    Attributes:
        levels: rising, those within the bounds of the plan; None off a grid.
        low: lower bound.
        high: upper bound.
        step: off a grid, how far the next level is.
    """

    levels: tuple[float, ...] | None
    low: float
    high: float
    step: float

    @classmethod
    def of(cls, plan: Plan, step: float | None = None) -> "Steps":
        """Those of a plan. A level of nothing is none: what it takes away whole, no other move makes up for.

        Raises:
            RequestError: a single level, or a step that cannot be meant.
        """
        levels = _levels(plan)
        if levels is not None and step is not None:
            raise RequestError(f"step {step:g}: budgets in this plan move from level to level of its grid")
        step = _USUAL_STEP.get(plan.unit, 0.0) if step is None else step
        if levels is None and not _LEAST_STEP <= step <= _MOST_STEP:
            raise RequestError(
                f"step {step:g} is outside [{_LEAST_STEP:g}, {_MOST_STEP:g}]: it is the share moved at a time"
            )
        n_levels = len(levels) if levels is not None else 1 + (plan.low < plan.high)
        if n_levels < _FEWEST:
            raise RequestError(
                f"the plan has a single level between low {plan.low:g} and high {plan.high:g}: nothing can "
                "move; allocate it with wider bounds, or for bits with more --bit-choices"
            )
        return cls(levels, plan.low, plan.high, step)

    def next(self, value: float, direction: int, times: int = 1) -> float | None:
        """The level after `value` in a direction, 1 or -1; None where there is none.

        Off a grid it is `times` as far as a step.
        """
        if self.levels is not None:
            beyond = [level for level in self.levels if (level - value) * direction > 0]
            return min(beyond, key=lambda level: abs(level - value)) if beyond else None
        found = min(max(value + direction * times * self.step, self.low), self.high)
        return found if (found - value) * direction > 0 and found > 0 else None

    def moved(self, values: Mapping[str, float], direction: int, times: int = 1) -> dict[str, float]:
        """The linears of a part one level on; those that are at a bound already are left out."""
        moved = {name: self.next(value, direction, times) for name, value in values.items()}
        return {name: value for name, value in moved.items() if value is not None}

    def ever_further(self, values: Mapping[str, float], direction: int) -> Iterator[dict[str, float]]:
        """The same one step on, two steps on, and so on until the bounds."""
        last: dict[str, float] = {}
        for times in count(1):
            found = self.moved(values, direction, times)
            if not found or found == last:
                return
            yield found
            last = found


def _levels(plan: Plan) -> tuple[float, ...] | None:
    if plan.grid is not None:
        levels = plan.grid.values()
    elif plan.unit is Unit.BITS:
        levels = tuple(map(float, BIT_WIDTHS))
    else:
        return None
    return tuple(level for level in levels if plan.low <= level <= plan.high and level > 0)
