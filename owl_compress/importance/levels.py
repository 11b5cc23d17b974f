"""The levels that parts are compressed to: those that are usual, and those that somebody gave."""

from collections.abc import Sequence
from math import isfinite

from owl_compress.documents.units import BIT_WIDTHS_SHOWN, KeptOfGrid, Unit, is_bit_width
from owl_compress.errors import RequestError

FEWEST_LEVELS = 2
_USUAL = {
    Unit.DENSITY: (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8),
    Unit.WIDTH: (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85),
    Unit.BITS: (2.0, 3.0, 4.0),
}


def usual_levels(unit: Unit, grid: KeptOfGrid | None = None) -> tuple[float, ...]:
    """What parts are compressed to where nobody says, rising: enough for most targets of the unit."""
    if grid is not None:
        return grid.values()[1:-1]
    return _USUAL[unit]


def checked_levels(
    levels: Sequence[float] | None, unit: Unit, grid: KeptOfGrid | None = None, *, extends: bool = False
) -> tuple[float, ...]:
    """The levels, each once and rising; where they are None the usual ones.

    A level of 1, in density or width, is the part as it is: it needs no trial, and is left out.

    Raises:
        RequestError: fewer than two, or none where they extend others; or one that no backend of the unit
            can carry out.
    """
    if levels is None:
        return usual_levels(unit, grid)
    for level in levels:
        _check(level, unit, grid)
    found = tuple(sorted({level for level in map(float, levels) if unit is Unit.BITS or level < 1}))
    fewest = 1 if extends else FEWEST_LEVELS
    if len(found) < fewest:
        raise RequestError(
            f"{len(found)} level{'s' if len(found) != 1 else ''} to try: give at least {fewest} different "
            "ones with --levels, or there is nothing to choose from"
        )
    return found


def _check(level: float, unit: Unit, grid: KeptOfGrid | None) -> None:
    if unit is Unit.BITS:
        if not is_bit_width(level):
            raise RequestError(f"level {level:g} is no number of bits: give {BIT_WIDTHS_SHOWN}")
        return
    if not isfinite(level) or not 0 < level <= 1:
        raise RequestError(f"level {level:g} is outside (0, 1]: it is the share that is kept, as in 0.3")
    if grid is not None and level not in grid.values():
        raise RequestError(
            f"level {level:g} is no whole number of {grid.kept_of} weights: write it as N:{grid.kept_of}"
        )
