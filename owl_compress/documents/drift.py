"""Whether the cells of a group have spent the same: what was counted, not what was asked for."""

from collections.abc import Iterable, Sequence

from owl_compress.documents.comparison import Row, Status, by_group
from owl_compress.documents.units import Unit

TOLERANCE = {Unit.DENSITY: 0.001, Unit.WIDTH: 0.002, Unit.BITS: 0.005}
"""By how much two averages may differ and still be the same budget: weights, heads and widths are whole."""

_LIMITS = ("size", "speedup", "latency")
"""Budgets that an average follows from: equal limits may well give unequal averages."""


def with_drift(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows with status and reason as the rest of their group has them.

    The cell of a group that is nearest to what was asked for is what the others are held against; whoever
    spent more or less than that, beyond rounding, has drifted.
    """
    changed: dict[str, Row] = {}
    for members in by_group(tuple(rows)).values():
        measured = [row for row in members if row.is_measured and row.achieved is not None]
        for row in _judged(measured):
            changed[row.cell] = row
    return tuple(changed.get(row.cell, row) for row in rows)


def _judged(rows: Sequence[Row]) -> Iterable[Row]:
    spent = [(abs((row.achieved or 0) - (row.asked or 0)), row.achieved or 0) for row in rows]
    if not spent:
        return
    _, reference = min(spent)
    for row, (_, achieved) in zip(rows, spent, strict=True):
        reason = None
        is_limited = any(row.recipe.get(name) is not None for name in _LIMITS)
        tolerance = TOLERANCE.get(row.unit, 0.0) if row.unit else 0.0
        if not is_limited and abs(achieved - reference) > tolerance:
            word = "more" if achieved > reference else "less"
            reason = (
                f"keeps {achieved:.4f} {row.unit}, {word} than the {reference:.4f} of its group: ask for a "
                "budget that both meet, or bounds and a rounding that let them"
            )
        status = Status.DONE if reason is None else Status.DRIFTED
        yield row.model_copy(update={"status": status, "reason": reason})
