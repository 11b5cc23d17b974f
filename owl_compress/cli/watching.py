"""A comparison watched: a live table on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Protocol, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from owl_compress.cli.console import Output
from owl_compress.cli.terminal import tell
from owl_compress.documents.comparison import Row
from owl_compress.pages.words import figure_in_words
from owl_compress.plain_text import plain
from owl_compress.progress import SILENT, Progress

if TYPE_CHECKING:
    from owl_compress.pipeline.comparison.cells import Cell

T = TypeVar("T")

_ROWS_SHOWN = 12


@dataclass
class Count:
    """How far a comparison is, and how much longer it may take."""

    total: int = 0
    ended: int = 0
    seconds: list[float] = field(default_factory=list)
    start: float = field(default_factory=monotonic)

    def begin(self, cells: Sequence["Cell"], rows: Sequence[Row]) -> None:
        """All cells, and the rows that are there already."""
        self.total, self.ended = len(cells), len(rows)

    def add(self, row: Row) -> None:
        """One more row; what was refused tells nothing of how long others take."""
        self.ended += 1
        if row.is_measured:
            self.seconds.append(row.seconds.get("total", 0.0))

    @property
    def left(self) -> str:
        """What is left, by the mean of the cells so far."""
        n_left = self.total - self.ended
        if not n_left:
            return "none left"
        if not self.seconds:
            return f"{n_left} left"
        return f"{n_left} left, about {duration(n_left * sum(self.seconds) / len(self.seconds))}"


def duration(seconds: float) -> str:
    """Seconds as people say them: "42 s", "3 min", "2.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def row_in_words(row: Row) -> str:
    """What came of a cell, in a line."""
    if not row.is_measured:
        return f"{row.name}: {row.status}: {row.reason}"
    figures = [f"{name} {figure_in_words(one.perplexity)}" for name, one in row.perplexity.items()]
    figures += [f"{name} {one.value:.3f}" for name, one in row.tasks.items()]
    return f"{row.name}: {', '.join(figures)} ({row.seconds.get('total', 0.0):.1f} s)"


class Watching(Protocol):
    """What the command hands to a comparison."""

    @property
    def progress(self) -> Progress:
        """Who is told of the steps of a cell."""
        ...

    def say(self, text: str) -> None:
        """A remark for people."""
        ...

    def begin(self, cells: "Sequence[Cell]", rows: Sequence[Row]) -> None:
        """All cells, and the rows that are there already."""
        ...

    def running(self, cell: "Cell") -> None:
        """A cell begins."""
        ...

    def ended(self, row: Row) -> None:
        """A row was appended."""
        ...


@contextmanager
def watch_for(output: Output) -> Iterator[Watching]:
    """The watch that fits the terminal, for as long as the block lasts."""
    if output.quiet:
        yield Quiet()
    elif sys.stderr.isatty():
        with LiveWatch() as watch:
            yield watch
    else:
        yield LineWatch()


class Quiet:
    """Nothing is said."""

    progress: Progress = SILENT

    def say(self, text: str) -> None:
        """Nothing."""

    def begin(self, cells: "Sequence[Cell]", rows: Sequence[Row]) -> None:
        """Nothing."""

    def running(self, cell: "Cell") -> None:
        """Nothing."""

    def ended(self, row: Row) -> None:
        """Nothing."""


class LineWatch:
    """A line for each cell that ended."""

    progress: Progress = SILENT

    def __init__(self) -> None:
        self._count = Count()

    def say(self, text: str) -> None:
        """A line."""
        tell(text)

    def begin(self, cells: "Sequence[Cell]", rows: Sequence[Row]) -> None:
        """How many there are."""
        self._count.begin(cells, rows)
        there = f", {len(rows)} of them there already" if rows else ""
        tell(f"{len(cells)} cells{there}")

    def running(self, cell: "Cell") -> None:
        """Nothing: a line comes when it ends."""

    def ended(self, row: Row) -> None:
        """The row in a line, and what is left."""
        self._count.add(row)
        tell(f"{self._count.ended}/{self._count.total} {row_in_words(row)}; {self._count.left}")


class LiveWatch:
    """A table that is drawn anew: the last rows, the cell that runs and its step, done and left."""

    def __init__(self) -> None:
        self._count = Count()
        self._rows: list[Row] = []
        self._running, self._step, self._remark = "", "", ""
        self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)

    def __enter__(self) -> "LiveWatch":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    @property
    def progress(self) -> Progress:
        """Steps are told in the table."""
        return self

    def track(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
        """Yield `items`, telling how many are done."""
        for done, item in enumerate(items):
            self._step = f"{what} {done}/{total}"
            self._draw()
            yield item
        self._step = ""

    def say(self, text: str) -> None:
        """A remark below the table."""
        self._remark = text
        self._draw()

    def begin(self, cells: "Sequence[Cell]", rows: Sequence[Row]) -> None:
        """The rows that are there already."""
        self._count.begin(cells, rows)
        self._rows = list(rows)
        self._draw()

    def running(self, cell: "Cell") -> None:
        """Show its name."""
        self._running = cell.name
        self._draw()

    def ended(self, row: Row) -> None:
        """Show it among the last rows."""
        self._rows.append(row)
        self._running = ""
        self._count.add(row)
        self._draw()

    def _draw(self) -> None:
        table = Table("cell", "group", "status", "figures", "seconds")
        for row in self._rows[-_ROWS_SHOWN:]:
            figures = [figure_in_words(one.perplexity) for one in row.perplexity.values()]
            figures += [f"{name} {one.value:.3f}" for name, one in row.tasks.items()]
            told = row.reason or ", ".join(figures)
            cells = (row.name, row.group, str(row.status), told, f"{row.seconds.get('total', 0.0):.1f}")
            table.add_row(*(Text(plain(cell)) for cell in cells))
        if self._running:
            table.add_row(Text(plain(self._running)), "", "running", Text(plain(self._step)), "")
        took = duration(monotonic() - self._count.start)
        line = f"{self._count.ended} of {self._count.total} done in {took}, {self._count.left}"
        self._live.update(Group(table, Text(line), Text(plain(self._remark))))
