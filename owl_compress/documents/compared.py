"""A comparison as it lies in a folder: its rows, and the grid that asked for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from owl_compress.documents.comparison import CELLS, GRID, ROWS, SHARED, Row, read_rows
from owl_compress.documents.drift import with_drift
from owl_compress.documents.strict_json import read_json, read_text
from owl_compress.documents.yaml12 import load_plain
from owl_compress.errors import RequestError

_BASELINE = "uniform"


@dataclass(frozen=True)
class Compared:
    """Rows, judged by whether their groups spent the same; the grid as it is written, if it is there."""

    rows: tuple[Row, ...]
    grid: str | None

    @property
    def baseline(self) -> str:
        """The allocator that others are compared with."""
        try:
            content = load_plain(self.grid or "")
        except ValueError:
            return _BASELINE
        named = content.get("baseline") if isinstance(content, dict) else None
        return named if isinstance(named, str) else _BASELINE


def is_comparison(path: Path) -> bool:
    """Whether a path is a folder that compare wrote, or the file of its rows."""
    return (path / ROWS).is_file() or (path.name.endswith(".jsonl") and path.is_file())


def read_comparison(path: Path) -> Compared:
    """The comparison in a folder, or in a file of rows.

    In a folder that several grids were carried out in, or one whose models or texts have changed meanwhile,
    these are the rows of the last grid as it was then: others are no part of its tables.

    Raises:
        RequestError: it has no rows, or one that is none.
    """
    folder = path if path.is_dir() else path.parent
    rows = read_rows(path / ROWS if path.is_dir() else path)
    if path.is_dir():
        rows = _of_last_grid(rows, folder / SHARED / CELLS)
    if not rows:
        raise RequestError(f"{path} has no rows yet: run the comparison first, or name another folder")
    try:
        grid = read_text(folder / GRID) if (folder / GRID).is_file() else None
    except (RequestError, ValueError):  # it is shown, and nothing depends on it
        grid = None
    return Compared(with_drift(rows), grid)


def _of_last_grid(rows: Sequence[Row], path: Path) -> tuple[Row, ...]:
    """Those whose cells are named in the file, in its order; all of them where there is no such file."""
    try:
        named = read_json(path) if path.is_file() else None
    except RequestError:
        named = None
    if not isinstance(named, list):
        return tuple(rows)
    known = {row.cell: row for row in rows}
    return tuple(known[cell] for cell in dict.fromkeys(map(str, named)) if cell in known)
