"""A table: one line for each linear, for spreadsheets and for scripts of one's own."""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from math import isfinite
from typing import Any, ClassVar

from owl_compress.documents.plan import Plan
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.errors import RequestError, nearest, shown
from owl_compress.exports.contract import Exported, Foreign

_COLUMNS = ("linear", "block", "weights", "unit", "value", "kept_of")
_PATTERN = re.compile(r"[0-9]{1,9}")
_NEEDED = ("linear", "unit", "value")


@dataclass(frozen=True)
class CsvTable:
    """The columns linear, block, weights, unit, value and kept_of; a linear left alone has no value."""

    name: ClassVar[str] = "csv"
    units: ClassVar[tuple[Unit, ...]] = (Unit.DENSITY, Unit.WIDTH, Unit.BITS)

    def write(self, plan: Plan) -> Exported:
        """Every budget, in the order of the plan."""
        kept_of = plan.grid.kept_of if isinstance(plan.grid, KeptOfGrid) else ""
        text = StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(_COLUMNS)
        for budget in plan.budgets:
            row = (budget.name, budget.block, budget.n_weights, plan.unit, repr(budget.value), kept_of)
            lines.writerow(row)
        for name in plan.skipped:
            lines.writerow((name, "", "", plan.unit, "", kept_of))
        return Exported(text.getvalue())

    def read(self, text: str, sizes: Mapping[str, int]) -> Foreign:  # noqa: ARG002 - names are whole
        """The columns linear, unit and value are needed, kept_of is used, and all others are passed over."""
        rows = csv.DictReader(StringIO(text), strict=True)
        try:
            lines = [(rows.line_num, row) for row in rows]
        except csv.Error as error:
            raise RequestError(f"line {rows.line_num} is no CSV: {error}") from error
        columns = rows.fieldnames or ()
        missing = next((name for name in _NEEDED if name not in columns), None)
        twice = next((name for name in columns if columns.count(name) > 1), None)
        if twice:
            raise RequestError(f"column {twice!r} is there twice")
        if missing or not lines:
            raise RequestError(f"column {missing!r} is missing" if missing else "it has no line of a linear")
        for number, row in lines:
            _check_fields(row, len(columns), number)
        units = dict.fromkeys(_unit(row["unit"], number) for number, row in lines)
        patterns = dict.fromkeys(row.get("kept_of") or "" for _, row in lines)
        if len(units) > 1 or len(patterns) > 1:
            raise RequestError("lines differ in unit or kept_of: a plan has one of each")
        values: dict[str, float] = {}
        skipped: list[str] = []
        for number, row in lines:
            name = row["linear"] or ""
            if name in values or name in skipped:
                raise RequestError(f"line {number} names {name} a second time")
            if row["value"]:
                values[name] = _number(row["value"], number)
            else:
                skipped.append(name)
        pattern = next(iter(patterns))
        kept_of = _kept_of(pattern) if pattern else None
        return Foreign(next(iter(units)), values, tuple(skipped), kept_of)


def _check_fields(row: Mapping[str | Any, Any], n_columns: int, number: int) -> None:
    """Refuse a line that was cut off, or has a decimal comma that is none of a table.

    Raises:
        RequestError: it has more or fewer fields than the header.
    """
    n_fields = sum(value is not None for key, value in row.items() if key is not None) + len(
        row.get(None, ())
    )
    if n_fields != n_columns:
        raise RequestError(f"line {number} has {n_fields} fields, and the header {n_columns}")


def _kept_of(text: str) -> int:
    if not _PATTERN.fullmatch(text) or not int(text):
        raise RequestError(f"kept_of {shown(text)} is no whole number above 0")
    return int(text)


def _unit(word: str | None, number: int) -> Unit:
    try:
        return Unit(word or "")
    except ValueError:
        known = nearest(word or "", [str(unit) for unit in Unit])
        raise RequestError(f"line {number}: unknown unit {shown(word)}: {known}") from None


def _number(text: str, number: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise RequestError(f"line {number}: {shown(text)} is no number")
    return value
