"""One level for each group at the least sum of costs: the multiple-choice knapsack, solved exactly.

Every group has levels and costs of its own, and no order is forced between groups. As for every budget (see
`budget`): never above it, short by less than the smallest step of any group, and where no choice gets that
close, the one that leaves least over.

Spends are whole numbers, of weights or bits; of 1024ths of them, rounded up, where levels are no whole number
of weights, as in a profile that was edited by hand. What all choices have in common is taken out of them, the
least spend of every group and then their greatest common divisor. If what is left is small, a table over
every spend is filled group by group (dynamic programming; Dudzinski & Walukiewicz 1987); else scipy's milp
looks for the choice. Groups are taken in the order of their names, so that their order in a file cannot
matter. Of choices that cost the same, the table gives the one that spends most, and then most to the first
name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, gcd, inf

import numpy as np

from owl_compress.allocators.base import FloatArray, Group, LevelCosts, natural_key
from owl_compress.allocators.branching import cheapest
from owl_compress.allocators.target import Target
from owl_compress.documents.quantities import told_apart
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.errors import RequestError

_EQUAL = 1e-12
"""Costs closer than this are the same cost; also the relative rounding allowed in a budget."""
_WHOLE = 1e-6
"""What is off a whole number by less is one."""
_FINER = 1024
_MOST_CELLS = 10_000_000
"""Of the table: 80 MB, and a second or two. Beyond, milp is asked."""


def least_cost(groups: Sequence[Group], choices: LevelCosts, target: Target) -> FloatArray:
    """The level of each group that makes the sum of the costs least.

    Raises:
        RequestError: the target lies outside what the levels can spend.
    """
    order = sorted(range(len(groups)), key=lambda i: natural_key(groups[i].name))
    scale = target.grid.kept_of if isinstance(target.grid, KeptOfGrid) else 1
    exact = [[level * scale * groups[i].n_weights for level in choices.levels[i]] for i in order]
    if any(abs(one - round(one)) > _WHOLE for spend in exact for one in spend):
        scale, exact = scale * _FINER, [[one * _FINER for one in spend] for spend in exact]
    whole = scale * sum(group.n_weights for group in groups)
    most = floor(target.value * whole * (1 + _EQUAL))
    spends = [tuple(ceil(one - _WHOLE) for one in spend) for spend in exact]
    problem = Knapsack(tuple(spends), tuple(choices.costs[i] for i in order), most)
    _check_span(problem, target, whole)
    values = np.empty(len(groups))
    for i, chosen in zip(order, problem.solve(), strict=True):
        values[i] = choices.levels[i][chosen]
    return values


def _check_span(problem: "Knapsack", target: Target, whole: int) -> None:
    least, most = (sum(pick(spend) for spend in problem.spends) for pick in (min, max))
    if problem.most < least:
        raise out_of_span(target, least / whole, is_below=True)
    if problem.most >= most + problem.step:
        raise out_of_span(target, most / whole, is_below=False)


def out_of_span(target: Target, end: float, *, is_below: bool) -> RequestError:
    """The refusal of a target beyond `end`, the mean of the lowest or highest levels that may be chosen."""
    side, extreme = ("below", "lowest") if is_below else ("above", "highest")
    m = target.grid.kept_of if isinstance(target.grid, KeptOfGrid) else None
    asked, found = told_apart(target.value * (m or 1), end * (m or 1))
    unit = f"of {m}" if m else target.unit
    return RequestError(
        f"an average of {asked} {unit} is {side} {found} {unit}, the mean of the {extreme} measured levels "
        f"allowed: {_remedy(target, m, is_below=is_below)}"
    )


def _remedy(target: Target, m: int | None, *, is_below: bool) -> str:
    more = "or less" if is_below else "or more"
    if m is not None:
        kept = floor(target.value * m) if is_below else ceil(target.value * m)
        if kept == 0:  # no pattern keeps less than one
            return "ask for that or more"
        return f"change the target, or measure levels of {kept}:{m} {more} too"
    if target.unit is Unit.WIDTH and is_below:
        return "change the target, or measure levels below that, where whole heads and channels allow any"
    return f"change the target, or measure levels of {target.value:g} {more} too"


@dataclass(frozen=True)
class Knapsack:
    """The problem in whole numbers.

    Attributes:
        spends: of each level of each group, rising.
        costs: likewise, finite.
        most: upper limit of the sum of the spends.
    """

    spends: tuple[tuple[int, ...], ...]
    costs: tuple[tuple[float, ...], ...]
    most: int

    @property
    def step(self) -> int:
        """The smallest distance of two levels of any group; 1 where nobody has a choice."""
        return min((b - a for spend in self.spends for a, b in pairwise(spend)), default=1)

    def solve(self) -> list[int]:
        """Index of the level that each group gets.

        Raises:
            ValueError: not even the lowest levels fit.
        """
        small, window = self._reduced()
        if small.most < 0:
            raise ValueError(f"no choice of levels fits the budget of {self.most}")
        if (small.most + 1) * (len(small.spends) + 1) <= _MOST_CELLS:
            return small.by_table(window)
        return cheapest(small.spends, small.costs, window, small.most)

    def _reduced(self) -> tuple["Knapsack", int]:
        """The same problem from a spend of 0 and without a common divisor, and its least spend wanted."""
        base = sum(spend[0] for spend in self.spends)
        above = [[one - spend[0] for one in spend] for spend in self.spends]
        divisor = gcd(*(one for spend in above for one in spend)) or 1
        spends = tuple(tuple(one // divisor for one in spend) for spend in above)
        most = min((self.most - base) // divisor, sum(spend[-1] for spend in spends))
        least = -((base - self.most + self.step - 1) // divisor)  # rounded up
        return Knapsack(spends, self.costs, most), max(0, least)

    def by_table(self, least: int) -> list[int]:
        """By dynamic programming, if the spend is to be `least` or more, or as much as can be."""
        table = self._table()
        reached = np.flatnonzero(np.isfinite(table[0]))
        close = reached[reached >= least]
        # Nothing that close: the most that can be spent at all.
        close = close if len(close) else reached[-1:]
        lowest = table[0][close].min()
        left = int(close[table[0][close] <= _alike(lowest)][-1])
        chosen = []
        for spend, cost, now, after in zip(self.spends, self.costs, table, table[1:], strict=False):
            bound = _alike(now[left])
            level = max(
                k for k, one in enumerate(spend) if one <= left and cost[k] + after[left - one] <= bound
            )
            chosen.append(level)
            left -= spend[level]
        return chosen

    def _table(self) -> list[FloatArray]:
        """Row i: least cost of the groups from i on, by exactly what they spend, [most + 1]."""
        row = np.full(self.most + 1, inf)
        row[0] = 0.0
        rows = [row]
        for spend, cost in zip(reversed(self.spends), reversed(self.costs), strict=True):
            after, row = rows[-1], np.full(self.most + 1, inf)
            for one, price in zip(spend, cost, strict=True):
                if one <= self.most:
                    part = row[one:]
                    np.minimum(part, after[: len(part)] + price, out=part)
            rows.append(row)
        return rows[::-1]


def _alike(cost: float) -> float:
    """The most that counts as the same cost."""
    return float(cost + _EQUAL * abs(cost))
