"""The one error a user can cause, and its words: what was probably meant, what is wrong with a value."""

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class RequestError(Exception):
    """The request cannot be satisfied; the command line prints the message as one line and exits with 2.

    The message says what is wrong, the offending value, and the remedy. Anything else that escapes is a
    defect of owl-compress (exit 1).
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint "did you mean 'x'?" for the known name nearest to `name`, else the list of all known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(names)


def first_problem(error: "ValidationError") -> str:
    """One line for the first thing pydantic found wrong: where, what, and the value."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    value = first.get("input")
    shown = f" (got {value!r})" if isinstance(value, str | int | float) else ""
    return f"{where}: {message}{shown}" if where else f"{message}{shown}"
