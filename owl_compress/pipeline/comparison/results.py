"""The folder of a comparison: begun with its grid, ended with tables of its rows."""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

from owl_compress.documents.comparison import CELLS, GRID, PAGE, ROWS, SHARED, SHEET, SUMMARY, TABLE, Row
from owl_compress.documents.disk import disk_errors, resolved, write_text
from owl_compress.documents.outputs import check_is_outside, is_empty
from owl_compress.documents.temporary import is_temporary
from owl_compress.errors import RequestError
from owl_compress.pages.comparison_tables import comparison_table, rows_as_csv, summary_as_csv

_SECONDS_TO_BEGIN = 60.0
_WITHOUT_ROWS = frozenset({SHARED, GRID, SHEET, SUMMARY, TABLE, PAGE})
"""What a comparison may leave that was interrupted before its first row."""


def prepare_folder(out: Path, inputs: Iterable[str]) -> None:
    """Make the folder, or see that it is one of ours to go on in; `inputs` are models that are read.

    Raises:
        RequestError: a file, a folder that holds something else or lies in an input, or one that cannot be
            written to.
    """
    with disk_errors(out):
        check_is_outside(out, resolved(out), inputs)
        if out.exists() and not out.is_dir():
            raise RequestError(
                f"results folder {out} is a file: name a folder that is new, empty or of results"
            )
        if out.is_dir() and not is_empty(out) and not _is_ours(out):
            raise RequestError(
                f"results folder {out} exists and holds no results of compare: name one that is new or empty"
            )
        (out / SHARED).mkdir(parents=True, exist_ok=True)


def begin_folder(out: Path, grid: str) -> None:
    """Put the grid into the folder as it was given.

    Raises:
        RequestError: the disk is full, or the file cannot be written.
    """
    write_text(out / GRID, grid)


def _is_ours(out: Path) -> bool:
    """Whether a folder has rows, or is one that compare began and did not get to a row in."""
    begun = {entry.name for entry in out.iterdir() if not is_temporary(entry.name)}
    return ROWS in begun or (begun <= _WITHOUT_ROWS and (out / SHARED).is_dir())


def note_cells(out: Path, keys: Sequence[str]) -> None:
    """Write down which rows are those of the grid, whatever others the folder may hold.

    Raises:
        RequestError: the disk is full, or the file cannot be written.
    """
    write_text(out / SHARED / CELLS, json.dumps(keys, indent=1) + "\n")


def await_folder(out: Path, grid: str) -> None:
    """Wait until the process that leads has begun the folder with this grid.

    Raises:
        RequestError: it has not after a minute.
    """
    deadline = monotonic() + _SECONDS_TO_BEGIN
    while monotonic() < deadline:
        with suppress(OSError):
            if (out / GRID).read_text(encoding="utf-8") == grid and (out / SHARED).is_dir():
                return
        sleep(0.1)
    raise RequestError(
        f"results folder {out} was not begun by the process that leads: all have to see the same folder"
    )


def write_tables(out: Path, rows: Sequence[Row], baseline: str) -> None:
    """Write what is made of the rows: Markdown, CSV of rows and of methods.

    Raises:
        RequestError: the disk is full, or a file cannot be written.
    """
    write_text(out / SHEET, rows_as_csv(rows))
    write_text(out / SUMMARY, summary_as_csv(rows, baseline))
    write_text(out / TABLE, comparison_table(rows, baseline))


def write_page(out: Path, rows: Sequence[Row], baseline: str, grid: str) -> None:
    """Write the page of the rows.

    Raises:
        RequestError: the disk is full, or it cannot be written.
    """
    from owl_compress.pages.comparison_page import comparison_page  # noqa: PLC0415 - loads matplotlib

    write_text(out / PAGE, comparison_page(rows, baseline, grid))
