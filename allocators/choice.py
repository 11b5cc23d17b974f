"""Choosing one level per group at least cost within a budget: a multiple-choice knapsack, solved by milp."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from owl_compress.allocators.base import FloatArray

if TYPE_CHECKING:
    from scipy import sparse

IntArray = NDArray[np.int64]

Key = tuple[float, float]
"""Rises with what a group should keep; compared like a tuple."""

Boundary = tuple[tuple[int, ...], tuple[int, ...]]
"""No class of the first gets less than any of the second."""

_RELATIVE_GAP = 1e-6
"""A choice is taken when none can be cheaper by more than this share."""
_MOST_NODES = 500
"""Branch-and-bound nodes before the best choice so far is taken: a count, not a time, so that runs repeat."""


@dataclass(frozen=True, eq=False)
class LevelChoice:
    """The problem, in whole numbers where the budget is concerned.

    Groups of equal size and equal key are interchangeable: they form a class, of which only the number of
    members at each level is chosen. That keeps the problem small and leaves no ties to chance.

    Attributes:
        cost: [classes, levels] for one member, of order one.
        members: [classes], number of groups in each.
        weights: [classes], size of one member, without a common divisor.
        units: [levels], rising.
        keys: of the classes, none above the one before.
        most: upper limit of Σ members · weights · units.
    """

    cost: FloatArray
    members: IntArray
    weights: IntArray
    units: IntArray
    keys: tuple[Key, ...]
    most: int

    def solve(self) -> IntArray:
        """How many members of each class get each level, [classes, levels].

        The cheapest choice among those that leave less than one smallest step over. The order of the keys is
        kept between all groups if it can be, else between groups of equal size. If nothing comes that close
        to the budget, what comes closest is taken.

        Raises:
            ValueError: not even the lowest levels fit, or the solver gave up.
        """
        step = int(self.weights.min()) * int(np.diff(self.units).min())
        by_size = self._by_size()
        for boundaries in (self._across_sizes(), by_size):
            chosen = self._choose(self.cost, self.most - step + 1, self.most, boundaries)
            if chosen is not None:
                return chosen
        spent = np.outer(self.weights, self.units)
        fullest = self._choose(-spent / spent.max(), 0, self.most, by_size)
        if fullest is None:
            raise ValueError(f"no choice of the levels {self.units.tolist()} fits the budget of {self.most}")
        total = self._total(fullest)
        chosen = self._choose(self.cost, total, total, by_size)
        return fullest if chosen is None else chosen

    def _total(self, chosen: IntArray) -> int:
        return int(self.weights @ (chosen @ self.units))

    def _by_size(self) -> list[Boundary]:
        """Boundaries between classes of equal size."""
        same_size: dict[int, list[int]] = {}
        for index, weight in enumerate(self.weights.tolist()):
            same_size.setdefault(weight, []).append(index)
        return [((a,), (b,)) for classes in same_size.values() for a, b in pairwise(classes)]

    def _across_sizes(self) -> list[Boundary]:
        """Boundaries between neighbouring keys, whatever the sizes."""
        same_key: dict[Key, list[int]] = {}
        for index, key in enumerate(self.keys):
            same_key.setdefault(key, []).append(index)
        return [(tuple(upper), tuple(lower)) for upper, lower in pairwise(same_key.values())]

    def _choose(self, cost: FloatArray, least: int, most: int, boundaries: list[Boundary]) -> IntArray | None:
        """The cheapest choice with a total from `least` to `most`, or None if there is none."""
        from scipy import sparse  # noqa: PLC0415 - this and the next take a second to load, which few need
        from scipy.optimize import Bounds, LinearConstraint, milp  # noqa: PLC0415

        n_classes, n_levels = cost.shape
        order = _Order.of(boundaries, self.members, n_levels)
        # In units of the largest term, so that the solver's tolerance means the same for any model.
        terms = np.outer(self.weights, self.units).ravel().astype(np.float64)
        spent = sparse.csr_array(order.padded(terms / terms.max())[None, :])
        once = sparse.hstack(
            [
                sparse.kron(sparse.eye_array(n_classes), np.ones((1, n_levels))),
                sparse.csr_array((n_classes, order.n_extra)),
            ]
        )
        constraints = [LinearConstraint(once, self.members, self.members)]
        if boundaries:
            constraints.append(LinearConstraint(order.rows, 0, np.inf))
        low, high = least, most
        while low <= high:
            budget = LinearConstraint(spent, (low - 0.25) / terms.max(), (high + 0.25) / terms.max())
            result = milp(
                order.padded(cost.ravel()),
                constraints=[*constraints, budget],
                integrality=np.concatenate([np.ones(cost.size), order.integrality]),
                bounds=Bounds(0, np.concatenate([np.repeat(self.members, n_levels), order.upper])),
                options={"mip_rel_gap": _RELATIVE_GAP, "node_limit": _MOST_NODES},
            )
            if result.x is None:
                return None
            chosen = np.rint(result.x[: cost.size]).astype(np.int64).reshape(cost.shape)
            total = self._total(chosen)
            if least <= total <= most:
                return chosen
            # The solver's tolerance let a miss through: ask for that much less, or more.
            low, high = low + max(least - total, 0), high - max(total - most, 0)
        return None


@dataclass(frozen=True, eq=False)
class _Order:
    """Boundaries as rows ≥ 0 over the choice variables and some extra ones that say where a boundary lies."""

    rows: "sparse.csr_array"
    integrality: FloatArray
    upper: FloatArray

    @property
    def n_extra(self) -> int:
        return len(self.upper)

    def padded(self, values: FloatArray) -> FloatArray:
        """Coefficients of the choice variables, followed by zeros for the extra ones."""
        return np.concatenate([values, np.zeros(self.n_extra)])

    @classmethod
    def of(cls, boundaries: list[Boundary], members: IntArray, n_levels: int) -> "_Order":
        from scipy import sparse  # noqa: PLC0415 - as above

        integrality: list[float] = []
        upper: list[float] = []
        rows: list[dict[int, float]] = []
        for boundary in boundaries:
            first_extra = len(members) * n_levels + len(upper)
            single = all(members[index] == 1 for side in boundary for index in side)
            rows += _single_rows(boundary, n_levels, first_extra) if single else []
            rows += [] if single else _class_rows(boundary, members, n_levels, first_extra)
            integrality += [0.0] if single else [1.0] * (n_levels - 1)
            upper += [n_levels - 1.0] if single else [1.0] * (n_levels - 1)
        entries = [(row, column, value) for row, terms in enumerate(rows) for column, value in terms.items()]
        places, columns, values = zip(*entries, strict=True) if entries else ((), (), ())
        shape = (len(rows), len(members) * n_levels + len(upper))
        matrix = sparse.csr_array((np.array(values, dtype=np.float64), (places, columns)), shape=shape)
        return cls(matrix, np.array(integrality), np.array(upper))


def _single_rows(boundary: Boundary, n_levels: int, threshold: int) -> Iterator[dict[int, float]]:
    """Level above ≥ threshold ≥ level below, for classes of one member."""
    for sign, side in zip((1.0, -1.0), boundary, strict=True):
        for index in side:
            level = {index * n_levels + k: sign * k for k in range(1, n_levels)}
            yield level | {threshold: -sign}


def _class_rows(
    boundary: Boundary, members: IntArray, n_levels: int, first_extra: int
) -> Iterator[dict[int, float]]:
    """With a switch per level k: on if anyone below reaches k, and then everyone above does."""
    for sign, side in zip((1.0, -1.0), boundary, strict=True):
        for index in side:
            for k in range(1, n_levels):
                reaching = {index * n_levels + j: sign for j in range(k, n_levels)}
                yield reaching | {first_extra + k - 1: -sign * float(members[index])}
