"""JSON that somebody may have edited or damaged: read strictly, or refused in one line.

Python's own reader takes the later of two equal keys, and gives up on deep nesting and long integers with
errors of its own kind. Nothing that we write needs any of that. Numbers that are not finite are left to the
documents, which say where they stand.
"""

import json
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from owl_compress.errors import RequestError

MAX_DEPTH = 40
"""Nesting that is read: our deepest documents have about ten levels."""

MAX_DIGITS = 20
"""Digits of an integer that is read: 2 to the power of 64 has that many."""

_MAX_BYTES = 2**28
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_text(path: Path) -> str:
    """The text of a file that is no larger than any of ours; a byte-order mark is left out.

    Raises:
        RequestError: it cannot be read, is a pipe or a device, or is too large.
        UnicodeDecodeError: it is not UTF-8.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise RequestError(f"cannot read {path}: it is a pipe or a device; save it to a file first")
        if status.st_size > _MAX_BYTES:
            raise RequestError(f"cannot read {path}: with {status.st_size:,} bytes it is no file of ours")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        raise RequestError(f"cannot read {str(path)!r}: {error}") from error  # a NUL in the name


def read_json(path: Path) -> Any:
    """The content of the JSON file at `path`.

    Raises:
        RequestError: unreadable, or see `parse_json`.
    """
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        raise RequestError(f"{path} is not whole JSON ({error}): truncated, or not a file of ours") from error


def parse_json(text: str) -> Any:
    """The value that `text` holds.

    Raises:
        ValueError: it is no JSON, gives a key twice, holds an integer of more than `MAX_DIGITS` digits, is
            nested deeper than `MAX_DEPTH`, or has half a surrogate pair in a string.
    """
    try:
        content = json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _check_depth(content)
    if _ESCAPED_SURROGATE.search(text):
        _check_strings(content)
    return content


def has_surrogates(text: str) -> bool:
    """Whether `text` has halves of surrogate pairs in it, as names of files that are no UTF-8 have."""
    return bool(_SURROGATE.search(text))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return content


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS + 1:
        raise ValueError(f"the number {digits[:10]}… has {len(digits)} digits")
    return int(digits)


def _check_depth(content: Any) -> None:
    """Level by level, so that the check itself does not nest."""
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [part for whole in level for part in _parts(whole) if isinstance(part, dict | list)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def _check_strings(content: Any) -> None:
    keys = content if isinstance(content, dict) else ()
    for text in (content, *keys):
        if isinstance(text, str) and has_surrogates(text):
            raise ValueError(f"{text[:40]!r} holds half a surrogate pair, which is no text")
    for part in _parts(content):
        _check_strings(part)


def _parts(whole: Any) -> Iterable[Any]:
    if isinstance(whole, dict):
        return whole.values()
    return whole if isinstance(whole, list) else ()
