"""The one error a user can cause, and its words: what was probably meant, what is wrong with a value."""

import difflib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pydantic import ValidationError

_Enum = TypeVar("_Enum", bound=StrEnum)

_LONGEST_SHOWN = 120
_MOST_NAMES, _NEAREST_NAMES, _MOST_LETTERS = 40, 5, 300


class RequestError(Exception):
    """The request cannot be satisfied; the command line prints the message as one line and exits with 2.

    The message says what is wrong, the offending value, and the remedy. Anything else that escapes is a
    defect of owl-compress (exit 1).
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint "did you mean 'x'?" for the known name nearest to `name`, else the list of all known names.

    Where they are more than fit a line, of all of them the few that are nearest.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    listed = ", ".join(names)
    if len(names) <= _MOST_NAMES and len(listed) <= _MOST_LETTERS:
        return f"known: {listed}"
    close = difflib.get_close_matches(name, names, n=_NEAREST_NAMES, cutoff=0.0)
    return f"of {len(names)} known names the nearest are {', '.join(close)}"


def member(kind: type[_Enum], value: str, what: str) -> _Enum:
    """The member of an enumeration that a user named.

    Raises:
        RequestError: it has none of that name.
    """
    known = [str(one) for one in kind]
    if value not in known:
        raise RequestError(f"unknown {what} {str(value)!r}: {nearest(str(value), known)}")
    return kind(value)


def first_problem(error: "ValidationError") -> str:
    """One line for the first thing pydantic found wrong: where, what, and the value."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = _in_words(first["type"], first.get("ctx") or {}) or first["msg"].removeprefix("Value error, ")
    value = first.get("input")
    given = f" (got {shown(value)})" if isinstance(value, str | int | float) else ""
    return f"{where}: {message}{given}" if where else f"{message}{given}"


_WORDS = {
    "greater_than": "has to be above {gt}",
    "greater_than_equal": "has to be {ge} or more",
    "less_than": "has to be below {lt}",
    "less_than_equal": "has to be {le} or less",
    "literal_error": "has to be {expected}",
    "enum": "has to be {expected}",
    "finite_number": "has to be a finite number",
    "int_type": "has to be a whole number",
    "int_parsing": "has to be a whole number",
    "int_from_float": "has to be a whole number",
    "float_type": "has to be a number",
    "float_parsing": "has to be a number",
    "bool_type": "has to be true or false",
    "bool_parsing": "has to be true or false",
    "string_type": "has to be text",
    "string_unicode": "has to be valid Unicode",
    "tuple_type": "has to be a list",
    "dict_type": "has to be a list of names and values",
    "model_type": "has to be a list of names and values",
    "too_short": "has {actual_length} entries, and needs {min_length} or more",
    "too_long": "has {actual_length} entries, and may have {max_length} at most",
    "missing": "is missing",
    "extra_forbidden": "is not known here",
}


def _in_words(kind: str, bounds: Mapping[str, object]) -> str | None:
    """What a kind of problem, as pydantic calls it, means for a user; None where its own words will do."""
    words = _WORDS.get(kind)
    return words.format_map(bounds) if words else None


def shown(value: object) -> str:
    """How a message shows a value that somebody gave: as Python writes it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a number of type {type(value).__name__} with thousands of digits"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
