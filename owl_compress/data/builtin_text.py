"""The English reference text that every CPython carries, as two halves."""

import re
from collections.abc import Iterator
from typing import Literal

from owl_compress.errors import RequestError

_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")

Half = Literal["calibration", "evaluation"]


def builtin_halves() -> dict[Half, tuple[str, ...]]:
    """Two disjoint halves of CPython's help topics, alike in size; no paragraph occurs in both, or twice.

    Some topics contain others whole. The longest topic is therefore taken first, each topic loses the
    paragraphs that came before, and what is left goes whole to the half that has less text so far. The text
    differs a little from one CPython version to the next; the recorded sha256 of the token ids tells.
    """
    try:
        from pydoc_data.topics import topics  # noqa: PLC0415 - half a megabyte that only this source needs
    except ImportError as error:
        raise RequestError(
            "this Python lacks pydoc_data, where the builtin text lives: install its full standard library, "
            "or give the path of a .txt, .jsonl or .parquet file"
        ) from error
    seen: set[str] = set()
    halves: dict[Half, list[str]] = {"calibration": [], "evaluation": []}
    sizes: dict[Half, int] = {"calibration": 0, "evaluation": 0}
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        document = "\n\n".join(_new_paragraphs(topics[name], seen))
        part = min(sizes, key=sizes.__getitem__)
        if document:
            halves[part].append(document)
            sizes[part] += len(document)
    return {part: tuple(documents) for part, documents in halves.items()}


def _new_paragraphs(document: str, seen: set[str]) -> Iterator[str]:
    """Yield the paragraphs not `seen` so far, spacing aside, and remember them."""
    for paragraph in _BLANK_LINES.split(document):
        key = " ".join(paragraph.split())
        if key and key not in seen:
            seen.add(key)
            yield paragraph.strip("\n")
