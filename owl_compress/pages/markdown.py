"""Markdown of what files say: tables, and names that end nothing."""

from collections.abc import Iterable

from owl_compress.plain_text import plain


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table whose first column is of words and all others are of numbers."""
    header = tuple(header)
    lines = [header, ("---", *("---:" for _ in header[1:])), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in cells] for cells in lines)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in escaped)


def code(name: str) -> str:
    """A name as it is, set off; backticks in it end nothing."""
    shown = plain(name)
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"
