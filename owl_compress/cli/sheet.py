"""A table as plain text: columns as wide as their cells, numbers right-aligned, no word split.

On a terminal the optional columns that do not fit are left out, and a line says which; in a pipe all are
there, so that the same command always gives the same lines.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from rich.cells import cell_len

_GAP = "  "


@dataclass(frozen=True)
class Column:
    """A heading and the cells below it.

    Attributes:
        heading: one word or a few.
        cells: one for each row.
        is_text: whether they are aligned to the left.
        is_optional: whether a terminal that is too narrow may leave them out.
    """

    heading: str
    cells: tuple[str, ...]
    is_text: bool = False
    is_optional: bool = False

    @property
    def width(self) -> int:
        """Cells of a terminal that it takes."""
        return max(map(cell_len, (self.heading, *self.cells)))

    def lines(self) -> Iterator[str]:
        """Heading, rule and cells, all equally wide."""
        for cell in (self.heading, "-" * self.width, *self.cells):
            room = " " * (self.width - cell_len(cell))
            yield cell + room if self.is_text else room + cell


@dataclass(frozen=True)
class Sheet:
    """A title, columns of equal length, and remarks below them."""

    title: str
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of_pairs(cls, title: str, pairs: Iterable[tuple[str, str]], notes: Sequence[str] = ()) -> Self:
        """A table of names and values."""
        names, values = zip(*pairs, strict=True)
        return cls(title, (Column("what", names, is_text=True), Column("value", values)), tuple(notes))

    @property
    def width(self) -> int:
        """Cells of a terminal that the columns take."""
        return sum(column.width for column in self.columns) + len(_GAP) * (len(self.columns) - 1)

    def fitting(self, width: int) -> Self:
        """The same table without the last optional columns, as far as `width` makes that necessary."""
        kept, left_out = self, list[str]()
        while kept.width > width and any(column.is_optional for column in kept.columns):
            last = max(index for index, column in enumerate(kept.columns) if column.is_optional)
            left_out.insert(0, kept.columns[last].heading)
            kept = replace(kept, columns=kept.columns[:last] + kept.columns[last + 1 :])
        if not left_out:
            return kept
        return replace(kept, notes=(*kept.notes, f"no room for {', '.join(left_out)}: see --json"))

    def head(self) -> list[str]:
        """Title and headings."""
        return [self.title, *self._rows()[:1]]

    def body(self) -> list[str]:
        """The rule, the rows, and the notes."""
        return [*self._rows()[1:], *self.notes]

    def _rows(self) -> list[str]:
        return [
            _GAP.join(cells).rstrip() for cells in zip(*(one.lines() for one in self.columns), strict=True)
        ]
