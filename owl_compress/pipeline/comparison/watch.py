"""Who is told how far a comparison is."""

from collections.abc import Sequence
from typing import Protocol

from owl_compress.documents.comparison import Row
from owl_compress.pipeline.comparison.cells import Cell


class Watch(Protocol):
    """Who is told how far a comparison is."""

    def begin(self, cells: Sequence[Cell], rows: Sequence[Row]) -> None:
        """All cells, and the rows of those that are there already."""
        ...

    def running(self, cell: Cell) -> None:
        """A cell begins."""
        ...

    def ended(self, row: Row) -> None:
        """A row was appended."""
        ...


class Unwatched:
    """Nobody is told."""

    def begin(self, cells: Sequence[Cell], rows: Sequence[Row]) -> None:
        """Nothing happens."""

    def running(self, cell: Cell) -> None:
        """Nothing happens."""

    def ended(self, row: Row) -> None:
        """Nothing happens."""
