"""Numbers of many blocks in one line of a terminal."""

from collections.abc import Sequence
from math import fsum

_LEVELS = "▁▂▃▄▅▆▇█"
_MOST = 72
"""Signs of a line; of more numbers, neighbours are averaged."""


def sparkline(values: Sequence[float | None]) -> str:
    """A sign for each number, the higher the larger; a blank where there is none, all alike in the middle."""
    row = _averaged(values)
    known = [value for value in row if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    return "".join(
        " " if value is None else _LEVELS[round((value - low) / span * (len(_LEVELS) - 1)) if span else 3]
        for value in row
    )


def sparkline_note(name: str, values: Sequence[float | None], shown: str = ".4g") -> str:
    """A line that says what it is of, and its ends: "lod@5 ▁▂█ 0.01 to 0.4"."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    return f"{name} {sparkline(values)} {min(known):{shown}} to {max(known):{shown}}"


def _averaged(values: Sequence[float | None]) -> list[float | None]:
    """At most so many numbers as a line has room for."""
    step = max(1, -(-len(values) // _MOST))
    starts = range(0, len(values), step)
    parts = ([value for value in values[start : start + step] if value is not None] for start in starts)
    return [fsum(part) / len(part) if part else None for part in parts]
