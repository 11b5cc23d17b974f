"""Paths as users write them."""

import os
from pathlib import Path

from owl_compress.errors import RequestError

_MOST_BYTES = 255
"""Of one name, on every file system in use."""


def given_path(path: Path | str) -> Path:
    """The path that a user wrote, with `~` and `~name` spelled out.

    Raises:
        RequestError: it is empty, no UTF-8, has a NUL in it, is too long for a file system, or of a user whom
            nobody knows here.
    """
    text = os.fspath(path)
    if not text:
        raise RequestError("'' is no path: name a file or folder (a variable of the shell may be empty)")
    if "\0" in text:
        raise RequestError(f"path {text!r} has a NUL in it, which no name may have")
    try:
        longest = max(Path(text).parts, key=lambda part: len(part.encode()), default="")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"path {text!r} is not valid UTF-8, which names here have to be: rename it"
        ) from error
    if len(longest.encode()) > _MOST_BYTES:
        raise RequestError(
            f"path {text[:40]!r}… has a name of {len(longest.encode())} bytes, and no more than "
            f"{_MOST_BYTES} are possible: shorten it"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        owner = Path(text).parts[0]
        raise RequestError(
            f"path {text!r}: nobody knows where {owner!r} is: write the path in full"
        ) from error
