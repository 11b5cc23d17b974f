"""What a command left in its folder, without what differs from one run to the next."""

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

_VOLATILE = re.compile(r"second|peak_|_at$|when|date|created|bytes_free|wall")
_ENDS = {".html": "</html>"}
"""Of these it is compared whether they have their end: charts draw times."""
_NUMBER = re.compile(r"\d[\d.,]*")


def contents(folder: Path) -> dict[str, Any]:
    """Everything below `folder` by its path: tensors to the last bit, of text what was measured but no times.

    Numbers in tables are left out, some of them being times; those in JSON are compared.
    """
    return {
        str(path.relative_to(folder)): _held(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _held(path: Path) -> Any:
    held = path.read_bytes()
    try:
        text = held.decode("utf-8")
    except UnicodeDecodeError:
        return sha256(held).hexdigest()
    end = _ENDS.get(path.suffix)
    if end is not None:
        return text.rstrip().endswith(end)
    try:
        if path.suffix == ".json":
            return _lasting(json.loads(text))
        if path.suffix == ".jsonl":
            return [_lasting(json.loads(line)) for line in text.splitlines()]
    except json.JSONDecodeError:
        return text
    return _lasting_lines(text)


def _lasting_lines(text: str) -> list[str]:
    """Lines that are not empty and do not tell what was resumed; headings only with something below them."""
    lines = [line for line in text.splitlines() if line.strip() and "resumed" not in line]
    pairs = zip(lines, [*lines, "## "][1:], strict=True)
    return [
        _NUMBER.sub("#", line)
        for line, following in pairs
        if not (line.startswith("## ") and following.startswith("## "))
    ]


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lasting(held) for name, held in value.items() if not _VOLATILE.search(name)}
    if isinstance(value, list):
        return [_lasting(held) for held in value if not (isinstance(held, str) and "resumed" in held)]
    return value


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Paths that are in one of them alone, or hold something else."""
    return [
        path
        + (
            " is missing"
            if path not in found
            else " is left"
            if path not in expected
            else _where(expected[path], found[path])
        )
        for path in sorted({*expected, *found})
        if path not in expected or path not in found or expected[path] != found[path]
    ]


def _where(expected: Any, found: Any, at: str = "") -> str:
    """The first place in which two values differ."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for name in [*expected, *found]:
            if expected.get(name) != found.get(name):
                return _where(expected.get(name), found.get(name), f"{at}.{name}")
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for place, pair in enumerate(zip(expected, found, strict=True)):
            if pair[0] != pair[1]:
                return _where(*pair, f"{at}[{place}]")
    return f"{at}: {str(expected)[:150]!r} became {str(found)[:150]!r}"
