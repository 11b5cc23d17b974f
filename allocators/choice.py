"""Choosing one level per group at least cost within a budget: a multiple-choice knapsack, solved by milp."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import LinearConstraint, milp

from owl_compress.allocators.base import FloatArray

IntArray = NDArray[np.int64]

Key = tuple[float, float]
"""Rises with what a group should keep; compared like a tuple."""

Precedence = tuple[int, int]
"""The first node gets at least the level of the second. Nodes from `n_groups` on are thresholds."""

_MOST_NODES = 20_000
"""Branch-and-bound nodes before the best choice so far is taken: a count, not a time, so that runs repeat."""


@dataclass(frozen=True, eq=False)
class LevelChoice:
    """The problem, in whole numbers where the budget is concerned.

    Attributes:
        cost: [groups, levels], of order one.
        weights: [groups], without a common divisor.
        units: [levels], rising.
        keys: of the groups, falling from the first to the last.
        most: upper limit of Σ weights · units[chosen].
    """

    cost: FloatArray
    weights: IntArray
    units: IntArray
    keys: tuple[Key, ...]
    most: int

    def solve(self) -> IntArray:
        """The level index of each group: cheapest among those that leave less than one smallest step over.

        The order of the keys is kept between all groups if it can be, else between groups of equal size. If
        nothing comes that close to the budget, what comes closest is taken.
        """
        step = int(self.weights.min()) * int(np.diff(self.units).min())
        by_size, across = self._by_size(), self._across_sizes()
        for precedences in (by_size + across, by_size):
            chosen = self._choose(self.cost, (self.most - step + 1, self.most), precedences)
            if chosen is not None:
                return chosen
        spent = np.outer(self.weights, self.units)
        fullest = self._choose(-spent / spent.max(), (0, self.most), by_size)
        if fullest is None:
            raise ValueError(f"not even the lowest levels fit the budget of {self.most}")
        total = self._total(fullest)
        chosen = self._choose(self.cost, (total, total), by_size)
        return fullest if chosen is None else chosen

    def _total(self, chosen: IntArray) -> int:
        return int(self.weights @ self.units[chosen])

    def _by_size(self) -> list[Precedence]:
        """Among groups of equal size each gets at least what the next gets: the order is then decided."""
        members: dict[int, list[int]] = {}
        for group, weight in enumerate(self.weights.tolist()):
            members.setdefault(weight, []).append(group)
        return [pair for same in members.values() for pair in pairwise(same)]

    def _across_sizes(self) -> list[Precedence]:
        """A threshold between neighbouring keys keeps every group above it over every group below it."""
        if len(set(self.weights.tolist())) == 1:
            return []
        threshold, pairs = len(self.weights) - 1, []
        start = 0
        for group in range(1, len(self.keys) + 1):
            if group < len(self.keys) and self.keys[group] == self.keys[start]:
                continue
            pairs += [(threshold, member) for member in range(start, group) if start > 0]
            threshold += 1
            pairs += [(member, threshold) for member in range(start, group) if group < len(self.keys)]
            start = group
        return pairs

    def _choose(
        self, cost: FloatArray, window: tuple[int, int], precedences: list[Precedence]
    ) -> IntArray | None:
        """The cheapest choice with a total in `window` (whole numbers), or None if there is none."""
        n_groups, n_levels = self.cost.shape
        n_thresholds = max((node for pair in precedences for node in pair), default=0) + 1 - n_groups
        n_thresholds = max(n_thresholds, 0)
        n_choices = n_groups * n_levels
        least, most = window
        # In units of the largest term, so that the solver's tolerance means the same for any model.
        terms = np.outer(self.weights, self.units).ravel().astype(np.float64)
        spent = sparse.csr_array(np.concatenate([terms, np.zeros(n_thresholds)])[None, :] / terms.max())
        once = sparse.hstack(
            [
                sparse.kron(sparse.eye_array(n_groups), np.ones((1, n_levels))),
                sparse.csr_array((n_groups, n_thresholds)),
            ]
        )
        constraints = [LinearConstraint(once, 1, 1)]
        if precedences:
            constraints.append(LinearConstraint(self._precedence_rows(precedences, n_thresholds), 0, np.inf))
        while least <= most:
            budget = LinearConstraint(spent, (least - 0.25) / terms.max(), (most + 0.25) / terms.max())
            result = milp(
                np.concatenate([cost.ravel(), np.zeros(n_thresholds)]),
                constraints=[*constraints, budget],
                integrality=np.concatenate([np.ones(n_choices), np.zeros(n_thresholds)]),
                bounds=(0, np.concatenate([np.ones(n_choices), np.full(n_thresholds, n_levels - 1)])),
                options={"mip_rel_gap": 1e-9, "node_limit": _MOST_NODES},
            )
            if result.x is None:
                return None
            chosen = result.x[:n_choices].reshape(n_groups, n_levels).argmax(axis=1).astype(np.int64)
            over = self._total(chosen) - window[1]
            under = window[0] - self._total(chosen)
            if over <= 0 and under <= 0:
                return chosen
            # The solver's tolerance let a miss through: ask for that much less (or more).
            most, least = most - max(over, 0), least + max(under, 0)
        return None

    def _precedence_rows(self, precedences: list[Precedence], n_thresholds: int) -> sparse.csr_array:
        """Level of the first node minus level of the second, as rows over all variables."""
        n_groups, n_levels = self.cost.shape
        n_nodes = n_groups + n_thresholds
        level_of = sparse.block_diag(
            [
                sparse.kron(sparse.eye_array(n_groups), np.arange(n_levels, dtype=np.float64)[None, :]),
                sparse.eye_array(n_thresholds),
            ]
        )  # [nodes, variables]
        rows = np.arange(len(precedences))
        upper, lower = np.array(precedences).T
        difference = sparse.csr_array(
            (np.ones(len(rows)), (rows, upper)), shape=(len(rows), n_nodes)
        ) - sparse.csr_array((np.ones(len(rows)), (rows, lower)), shape=(len(rows), n_nodes))
        return sparse.csr_array(difference @ level_of)
