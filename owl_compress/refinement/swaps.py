"""Which few parts move a level up or down together: the largest measured gain at the same budget.

Pure numbers. The choice is an integer program, solved exactly. That moves are few is the point of it: gains
were measured one move at a time, and of many moves made together they do not add up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, fsum, gcd

import numpy as np

from owl_compress.documents.plan import Plan
from owl_compress.documents.units import KeptOfGrid, Unit

_ROUNDING = 1e-12
_NOTHING = 1e-9
"""Share of a move below which it is none."""
_RESOLUTION = 1e4
"""The largest gain in the solver's units: its absolute tolerance, 1e-6, is little beside it."""


@dataclass(frozen=True)
class Move:
    """One part at another level, everything else as the plan has it.

    Attributes:
        part: its name.
        before: the level of the part in the plan, the mean over its weights.
        after: the level that it moves to.
        budgets: of all linears that this changes, by name.
        spend: what it takes from the budget, in the units of `Ledger`; negative where it frees something.
        gain: what the damage falls by, measured.
    """

    part: str
    before: float
    after: float
    budgets: Mapping[str, float]
    spend: float
    gain: float

    def scaled(self, share: float, values: Mapping[str, float]) -> "Move":
        """The move made to a `share` of its way, from the `values` of its linears."""
        if share == 1.0:
            return self
        budgets = {name: values[name] + share * (new - values[name]) for name, new in self.budgets.items()}
        after = self.before + share * (self.after - self.before)
        return Move(self.part, self.before, after, budgets, share * self.spend, share * self.gain)


@dataclass(frozen=True)
class Ledger:
    """What budgets spend.

    Attributes:
        sizes: number of weights by the name of a linear.
        scale: whole units of spend per weight and level: the M of N:M, else 1.
        limit: the most that all may spend; without meaning where spends are divisible.
        is_divisible: levels may have any value between two, so that a mean can be kept exactly.
    """

    sizes: Mapping[str, int]
    scale: int
    limit: int
    is_divisible: bool

    @classmethod
    def of(cls, plan: Plan) -> "Ledger":
        """The account of a plan."""
        sizes = {budget.name: budget.n_weights for budget in plan.budgets}
        scale = plan.grid.kept_of if isinstance(plan.grid, KeptOfGrid) else 1
        limit = floor(plan.target * scale * sum(sizes.values()) * (1 + _ROUNDING))
        return cls(sizes, scale, limit, plan.unit is Unit.DENSITY and plan.grid is None)

    def spend(self, budgets: Mapping[str, float]) -> float:
        """What these linears take: a whole number, unless spends are divisible."""
        spends = [self.scale * self.sizes[name] * value for name, value in budgets.items()]
        return fsum(spends) if self.is_divisible else sum(map(round, spends))

    def room(self, values: Mapping[str, float], smallest: float) -> tuple[float, float]:
        """Least and most that moves together may take, from a plan of these `values`.

        Never above the budget, and short of it by less than the `smallest` move, or by no more than now.
        Where spends are divisible, the mean stays.
        """
        if self.is_divisible:
            return 0.0, 0.0
        left = self.limit - self.spend(values)
        return min(0.0, left - smallest + 1), left


def mean_level(sizes: Mapping[str, int], budgets: Mapping[str, float]) -> float:
    """Mean of the budgets over the weights of their linears."""
    return fsum(sizes[name] * value for name, value in budgets.items()) / sum(map(sizes.__getitem__, budgets))


def move_between(
    part: str,
    linears: Sequence[str],
    before: Mapping[str, float],
    after: Mapping[str, float],
    ledger: Ledger,
) -> Move | None:
    """The move of a part with these `linears` that led from some budgets to others; None if nothing moved.

    `after` may leave out linears that stay. Nothing is said of a gain yet.
    """
    changed = {name: value for name, value in after.items() if abs(value - before[name]) > _ROUNDING}
    if not changed:
        return None
    old, new = ({name: one[name] for name in linears} for one in (before, {**before, **changed}))
    spend = ledger.spend(changed) - ledger.spend({name: before[name] for name in changed})
    sizes = ledger.sizes
    return Move(part, mean_level(sizes, old), mean_level(sizes, new), changed, spend, 0.0)


def best_moves(
    moves: Sequence[Move], most: int, ledger: Ledger, values: Mapping[str, float]
) -> tuple[Move, ...]:
    """At most `most` of the moves, no two of one part or of one linear, with the largest sum of gains.

    Where spends are divisible a move may be made in part, taken to gain that part of its gain. Nothing is
    returned where no choice gains anything.
    """
    if not moves:
        return ()
    smallest = min(abs(move.spend) for move in moves)
    shares = _shares(moves, most, ledger.room(values, smallest), is_divisible=ledger.is_divisible)
    chosen = [
        move.scaled(share, values) for move, share in zip(moves, shares, strict=True) if share > _NOTHING
    ]
    if ledger.is_divisible:
        chosen = _balanced(chosen, values)
    return tuple(chosen) if fsum(move.gain for move in chosen) > 0 else ()


def _shares(
    moves: Sequence[Move], most: int, room: tuple[float, float], *, is_divisible: bool
) -> list[float]:
    """How far each move is made, in [0, 1]; whole moves alone where spends are not divisible.

    Variables are the shares, and for each whether it is above zero, which is what is counted.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # noqa: PLC0415 - takes a second to load

    n = len(moves)
    spends = np.array([move.spend for move in moves])
    unit = float(np.abs(spends).max()) if is_divisible else float(gcd(*(int(spend) for spend in spends)))
    least, limit = (bound / unit for bound in room)
    if not is_divisible:  # whole numbers: between them, where the solver's tolerance decides nothing
        least, limit = ceil(least) - 0.25, floor(limit) + 0.25
    changed = [{move.part, *move.budgets} for move in moves]
    names = sorted(set[str]().union(*changed))
    shared = np.array([[name in one for one in changed] for name in names], dtype=float)
    zeros, ones = np.zeros((1, n)), np.ones((1, n))
    rows = [
        LinearConstraint(np.hstack([np.eye(n), -np.eye(n)]), -np.inf, 0.0),
        LinearConstraint(np.hstack([zeros, ones]), 0.0, float(most)),
        LinearConstraint(np.hstack([spends[None] / unit, zeros]), least, limit),
        LinearConstraint(np.hstack([np.zeros_like(shared), shared]), -np.inf, 1.0),
    ]
    gains = np.array([move.gain for move in moves])
    gains *= _RESOLUTION / (np.abs(gains).max() or 1.0)
    found = milp(
        np.concatenate([-gains, np.zeros(n)]),
        constraints=rows,
        bounds=Bounds(0.0, 1.0),
        integrality=np.concatenate([np.full(n, 0 if is_divisible else 1), np.ones(n)]),
        options={"mip_rel_gap": 0.0},
    )
    if not found.success:  # to move nothing is always allowed
        raise ArithmeticError(f"no choice of moves was found: {found.message}")
    shares = found.x[:n] if is_divisible else np.round(found.x[:n])
    return [float(share) for share in shares]


def _balanced(moves: Sequence[Move], values: Mapping[str, float]) -> list[Move]:
    """The moves with the heavier side made a little shorter, so that they take exactly what they free."""
    taken = fsum(move.spend for move in moves if move.spend > 0)
    freed = -fsum(move.spend for move in moves if move.spend < 0)
    if not taken or not freed:
        return []
    return [
        move.scaled(min(1.0, freed / taken if move.spend > 0 else taken / freed), values) for move in moves
    ]
