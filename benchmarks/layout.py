"""How the tables of docs/measured.md are set."""

from collections.abc import Iterable, Sequence
from statistics import mean
from textwrap import fill
from typing import Any

Row = dict[str, Any]

WIDTH = 120


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown, its first column on the left and all others on the right."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def number(value: float | None) -> str:
    """Four significant digits, whole from 1000 on."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def section(title: str, text: str, table: str) -> str:
    """A section of the page: title, text, table."""
    return f"## {title}\n\n{fill(text, WIDTH)}\n\n{table}"


def several(figures: Sequence[float]) -> str:
    """One figure, or of several the mean and the range."""
    if not figures:
        return "–"
    if len(figures) == 1:
        return number(figures[0])
    return f"{number(mean(figures))} ({number(min(figures))} to {number(max(figures))})"
