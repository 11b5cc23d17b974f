"""Sizes, times and numbers of tokens as people write them: 300MB, 0.3GB, 250MiB, 120ms, 60k."""

import re
from decimal import Decimal

_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)(e[+-]?[0-9]{1,2})?\s*([a-z]*)\s*", re.IGNORECASE)
_PREFIXES = ("", "k", "m", "g", "t")
_BYTES = {
    **{f"{prefix}b": 1000**power for power, prefix in enumerate(_PREFIXES)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate(_PREFIXES) if prefix},
    "": 1,
}
_SECONDS = {"": Decimal(1), "s": Decimal(1), "ms": Decimal("1e-3"), "us": Decimal("1e-6")}
_MOST_BYTES = 2**63
_THOUSANDS = {"": 1, "k": 1_000, "m": 1_000_000}
_TOKENS = re.compile(r"(\d+(?:\.\d+)?)\s*([km]?)", re.IGNORECASE)


def told_apart(one: float, other: float) -> tuple[str, str]:
    """Two numbers in as few digits, four at least, as tell one from the other."""
    for digits in range(4, 17):
        shown = (f"{one:.{digits}g}", f"{other:.{digits}g}")
        if shown[0] != shown[1]:
            return shown
    return repr(one), repr(other)


def parsed_bytes(text: str) -> int:
    """Bytes that `text` stands for, a fraction of one left off: MB are 10^6 bytes, MiB 2^20.

    Raises:
        ValueError: no size, or none that a file can have.
    """
    number, unit = _split(text, "is a size such as 300MB, 0.3GB, 250MiB or a number of bytes")
    factor = _BYTES.get(unit)
    if factor is None:
        raise ValueError(f"has no unit {unit!r}: write B, kB, MB, GB or TB, or KiB, MiB, GiB or TiB")
    n_bytes = int(number * factor)
    if not 0 < n_bytes < _MOST_BYTES:
        raise ValueError("is above 0 bytes, and below 2^63")
    return n_bytes


def parsed_seconds(text: str) -> float:
    """Seconds that `text` stands for.

    Raises:
        ValueError: no time, or nothing above 0.
    """
    number, unit = _split(text, "is a time such as 0.120, in seconds, or 120ms")
    factor = _SECONDS.get(unit)
    if factor is None:
        raise ValueError(f"has no unit {unit!r}: write s, ms or us, or a number of seconds")
    seconds = float(number * factor)
    if not seconds > 0:
        raise ValueError("is a time above 0")
    return seconds


def _split(text: str, what: str) -> tuple[Decimal, str]:
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise ValueError(what)
    return Decimal(found[1] + (found[2] or "")), found[3].lower()


def n_tokens(text: str) -> int:
    """The number that 60000, 60k or 1.5M stands for; 0 for what is no number."""
    found = _TOKENS.fullmatch(text.strip())
    return round(float(found[1]) * _THOUSANDS[found[2].lower()]) if found else 0
