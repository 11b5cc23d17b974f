"""From the file of another tool to a plan that any backend here can carry out."""

from collections.abc import Mapping
from dataclasses import asdict

from pydantic import ValidationError

from owl_compress.documents.plan import AllocatorRecord, LinearBudget, Plan, weighted_mean
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.units import (
    BIT_WIDTHS_SHOWN,
    BitsGrid,
    Grid,
    KeptOfGrid,
    Unit,
    is_bit_width,
)
from owl_compress.errors import RequestError, first_problem, nearest
from owl_compress.exports.contract import Foreign, Importer

_IMPORTED = "imported"

_ROUNDED = 0.05
"""Of a step from one N of M to the next: what decimals that were cut off may make of it."""


def plan_from(text: str, tool: Importer, report: ImportanceReport) -> Plan:
    """The plan that a file of another tool stands for, over the linears of `report`, whose model it is of.

    Its target is what it spends. Linears that the file does not name are left alone.

    Raises:
        RequestError: it is no file of that tool, names a linear that the model has not, or says what no plan
            can.
    """
    sizes = {linear.name: linear.n_weights for block in report.blocks for linear in block.linears}
    found = tool.read(text, sizes)
    _check_names(found, sizes)
    _check_widths(found)
    values = _on_grid(found)
    budgets = tuple(
        LinearBudget(
            name=linear.name, block=block.name, n_weights=linear.n_weights, value=values[linear.name]
        )
        for block in report.blocks
        for linear in block.linears
        if linear.name in values
    )
    if not budgets:
        raise RequestError("it leaves every linear alone: nothing is left to compress")
    named = {one.name for one in budgets}
    low, high = (0.0, 1.0) if found.unit is not Unit.BITS else (min(values.values()), max(values.values()))
    try:
        return Plan(
            unit=found.unit,
            target=weighted_mean(budgets),
            grid=_grid(found),
            low=low,
            high=high,
            allocator=AllocatorRecord(name=_IMPORTED, parameters={"tool": tool.name, **_options(tool)}),
            report=report.fingerprint,
            skipped=tuple(name for name in sizes if name not in named),
            coverage=report.coverage,
            budgets=budgets,
        )
    except ValidationError as error:
        raise RequestError(first_problem(error)) from error


def _check_names(found: Foreign, sizes: Mapping[str, int]) -> None:
    unknown = next((name for name in (*found.values, *found.skipped) if name not in sizes), None)
    if unknown is not None:
        raise RequestError(
            f"it names {unknown!r}, and the report has no such linear: {nearest(unknown, sizes)}"
        )


def _check_widths(found: Foreign) -> None:
    wrong = [
        name for name, value in found.values.items() if found.unit is Unit.BITS and not is_bit_width(value)
    ]
    if wrong:
        raise RequestError(
            f"it gives {wrong[0]} {found.values[wrong[0]]:g} bits, and plans have {BIT_WIDTHS_SHOWN}"
        )


def _on_grid(found: Foreign) -> Mapping[str, float]:
    """The values; densities of N:M as exact shares of M.

    Raises:
        RequestError: one that is no such share, and not by rounding alone.
    """
    of = found.kept_of
    if not of or of < 0:
        return found.values
    for name, value in found.values.items():
        if abs(value * of - round(value * of)) > _ROUNDED:
            raise RequestError(
                f"{name} has {value:g}, which is no N of {of}: the nearest is {round(value * of)} of {of}, "
                f"{round(value * of) / of:g}"
            )
    return {name: round(value * of) / of for name, value in found.values.items()}


def _grid(found: Foreign) -> Grid | None:
    if found.kept_of is not None:
        return KeptOfGrid(kept_of=found.kept_of)
    if found.unit is Unit.BITS:
        return BitsGrid(bits=tuple(sorted({round(value) for value in found.values.values()})))
    return None


def _options(tool: Importer) -> dict[str, float | int | str]:
    given = asdict(tool) if hasattr(tool, "__dataclass_fields__") else {}  # type: ignore[call-overload]
    return {name: value for name, value in given.items() if value is not None}
