"""A comparison: one row for each cell of a grid, one line of JSON for each row."""

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, JsonValue, ValidationError

from owl_compress.documents.accuracy import TaskAccuracy
from owl_compress.documents.document import Frozen, is_none
from owl_compress.documents.measurements import AgreementRecord, LatencyRecord, PerplexityRecord
from owl_compress.documents.strict_json import parse_json, read_text
from owl_compress.documents.units import Count, Unit
from owl_compress.errors import RequestError, first_problem

ROWS, GRID, TABLE, SHEET, SUMMARY, PAGE, SHARED = (
    "rows.jsonl", "grid.yaml", "table.md", "rows.csv", "summary.csv", "page.html", "shared",
)  # fmt: skip
"""What a folder of results holds."""

CELLS = "cells.json"
"""In `SHARED`: the fingerprints of the cells of the grid, in its order; rows may be of earlier grids, too."""


class Status(StrEnum):
    """What became of a cell."""

    DONE = "done"
    DRIFTED = "drifted"  # carried out, but another amount than the rest of its group
    REFUSED = "refused"  # cannot be satisfied
    FAILED = "failed"  # through a defect


class RowProvenance(Frozen):
    """Where a row comes from: versions, machine, command, and the sha256 of the token ids of each text."""

    versions: dict[str, str]
    machine: dict[str, str]
    command: str
    texts: dict[str, str] = Field(
        description="sha256 of the token ids, by what the text was for and its name"
    )


class Row(Frozen):
    """One cell: what was asked, what came of it, and where the numbers come from.

    What was not measured, or not reached, is None or empty. `group` names what has to spend the same: all
    settings but the allocator, its options and the seed. A larger budget keeps more; `budgets` are means over
    the weights of each block.
    """

    SCHEMA: ClassVar[str] = "owl-compress/row/1"

    schema_: Literal["owl-compress/row/1"] = Field(default="owl-compress/row/1", alias="schema")
    cell: str = Field(description="fingerprint of everything that goes into the cell")
    name: str = Field(description="short, of what varies")
    group: str
    dense: bool = Field(default=False, description="whether this is the model as it was")
    axes: dict[str, JsonValue] = Field(description="what varies in the grid, and its value here")
    recipe: dict[str, JsonValue] = Field(description="all settings, under their names on the command line")
    status: Status
    reason: str | None = Field(default=None, description="one line, where it is not done")
    unit: Unit | None = None
    asked: float | None = None
    achieved: float | None = None
    perplexity: dict[str, PerplexityRecord] = Field(default={}, description="by the name of the text")
    tasks: dict[str, TaskAccuracy] = Field(default={}, description="by name")
    agreement: AgreementRecord | None = Field(default=None, exclude_if=is_none)
    bytes_on_disk: Count | None = Field(default=None, description="of the weight files, as they would be")
    bits_per_weight: float | None = None
    n_params: Count | None = None
    seconds: dict[str, float] = Field(default={}, description="by stage; what was shared counts where it ran")
    peak_memory_bytes: Count | None = None
    latency: LatencyRecord | None = Field(default=None, exclude_if=is_none)
    budgets: dict[str, float] = Field(default={}, description="by block")
    notes: tuple[str, ...] = ()
    provenance: RowProvenance

    @property
    def is_measured(self) -> bool:
        """Whether there are figures to show."""
        return self.status in {Status.DONE, Status.DRIFTED}

    @property
    def seed(self) -> JsonValue:
        """What its windows were drawn by."""
        return self.recipe.get("seed")

    def line(self) -> str:
        """The row as a line of a file, with its end; plain ASCII, so that no cut leaves half a letter."""
        return json.dumps(self.model_dump(mode="json"), allow_nan=False) + "\n"

    @classmethod
    def parse(cls, line: str) -> Self:
        """The row that a line holds.

        Raises:
            ValueError: it is no JSON, or no row of this version.
        """
        content = parse_json(line)
        found = content.get("schema") if isinstance(content, dict) else None
        if found != cls.SCHEMA:
            raise ValueError(f"it has schema {found!r}, expected {cls.SCHEMA!r}")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise ValueError(first_problem(error)) from error


def is_whole(line: str) -> bool:
    """Whether a line is JSON from its start to its end, be it a row or not."""
    try:
        json.loads(line.lstrip("\ufeff"))
    except (ValueError, RecursionError):
        return False
    return True


def read_rows(path: Path) -> tuple[Row, ...]:
    """The rows of a file, in the order in which their cells came first; of those of a cell, the last.

    A last line that is not whole, as a process that was killed leaves it, is passed over.

    Raises:
        RequestError: unreadable, or a whole line that is no row.
    """
    try:
        lines = read_text(path).split("\n")
    except ValueError as error:
        raise RequestError(f"{path} is no file of rows: {error}") from error
    found: dict[str, Row] = {}
    last = max((number for number, line in enumerate(lines, start=1) if line.strip()), default=0)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = Row.parse(line)
        except ValueError as error:
            if number == last and not is_whole(line):
                break
            raise RequestError(
                f"{path}: line {number} is no row ({error}): take it out, and its cell runs again"
            ) from error
        found[row.cell] = row
    return tuple(found.values())


def read_results(folder: Path) -> tuple[Row, ...]:
    """The rows in a folder that `compare` wrote.

    Raises:
        RequestError: there are none, or see `read_rows`.
    """
    path = folder / ROWS
    if not path.is_file():
        raise RequestError(f"{folder} holds no {ROWS}: name a folder that `owl-compress compare` wrote")
    return read_rows(path)


def by_group(rows: tuple[Row, ...]) -> Mapping[str, tuple[Row, ...]]:
    """The rows of compressed models by their group, both in the order in which they come."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if not row.dense:
            found.setdefault(row.group, []).append(row)
    return {group: tuple(members) for group, members in found.items()}
