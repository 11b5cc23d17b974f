"""The multiple-choice knapsack by branch and bound (scipy's milp), for budgets too long for a table."""

from collections.abc import Sequence

import numpy as np

from owl_compress.allocators.base import FloatArray

_MOST_NODES = 20_000
"""Branch-and-bound nodes before the best choice so far is taken: a count, not a time, so that runs repeat."""
_RESOLUTION = 1e4
"""The cost of a known choice in the solver's units: its absolute tolerance, 1e-6, is little beside it."""
_FAR = 1e-3
_EQUAL = 1e-12

_Rows = Sequence[Sequence[int]]


def cheapest(spends: _Rows, costs: Sequence[Sequence[float]], least: int, most: int) -> list[int]:
    """Index of the level of each group, with least costs among spends from `least` to `most`.

    Args:
        spends: of the levels of each group, whole numbers.
        costs: likewise, finite.
        least: of the sum of the spends; where no sum is from there to `most`, the largest below is taken.
        most: likewise.

    Raises:
        ValueError: every choice spends more than `most`.
    """
    chosen = _cheapest(spends, costs, least, most)
    if chosen is not None:
        return chosen
    fullest = _search(spends, -_flat(spends) / (max(map(max, spends)) or 1), 0, most)
    if fullest is None:
        raise ValueError(f"no choice of levels fits the budget of {most}")
    total = _total(spends, fullest)
    return _cheapest(spends, costs, total, total) or fullest


def _cheapest(spends: _Rows, costs: Sequence[Sequence[float]], least: int, most: int) -> list[int] | None:
    """The cheapest choice with a spend from `least` to `most`; None if there is none.

    A level that alone costs more than a known choice is out. What is left has costs of one order, in which
    the solver's tolerance means little, however far apart the costs of all levels are.
    """
    above = _flat([[one - min(row) for one in row] for row in costs])
    starts = np.cumsum([0, *map(len, costs[:-1])])
    known, bound = None, float(above.max())
    while True:
        found = _search(spends, above / (bound or 1.0), least, most)
        if found is None:
            return known
        known, price = found, float(above[starts + np.array(found)].sum())
        if price >= _FAR * bound:
            return known
        bound = price


def _search(spends: _Rows, cost: FloatArray, least: int, most: int) -> list[int] | None:
    """One milp for flat costs of order one; a level of a cost above 1 is left out."""
    from scipy import sparse  # noqa: PLC0415 - this and the next take a second to load, which few need
    from scipy.optimize import Bounds, LinearConstraint, milp  # noqa: PLC0415

    lengths = list(map(len, spends))
    terms = _flat(spends)
    scale = float(terms.max()) or 1.0
    once = sparse.csr_array(
        (np.ones(len(terms)), np.arange(len(terms)), np.cumsum([0, *lengths])),
        shape=(len(lengths), len(terms)),
    )
    low, high = least, most
    while low <= high:
        # In units of the largest term, so that the solver's tolerance means the same for any model.
        window = LinearConstraint(terms[None, :] / scale, (low - 0.25) / scale, (high + 0.25) / scale)
        result = milp(
            _RESOLUTION * np.minimum(cost, 1.0),
            constraints=[LinearConstraint(once, 1, 1), window],
            integrality=np.ones(len(cost), dtype=np.int64),
            bounds=Bounds(0, (cost <= 1 + _EQUAL).astype(np.float64)),
            options={"mip_rel_gap": 0.0, "node_limit": _MOST_NODES},
        )
        if result.x is None:
            return None
        parts = np.split(result.x, np.cumsum(lengths)[:-1])
        chosen = [int(part.argmax()) for part in parts]
        total = _total(spends, chosen)
        if least <= total <= most:
            return chosen
        # The solver's tolerance let a miss through: ask for that much less, or more.
        low, high = low + max(least - total, 0), high - max(total - most, 0)
    return None


def _flat(rows: Sequence[Sequence[float]]) -> FloatArray:
    return np.array([one for row in rows for one in row], dtype=np.float64)


def _total(spends: _Rows, chosen: Sequence[int]) -> int:
    return sum(row[k] for row, k in zip(spends, chosen, strict=True))
