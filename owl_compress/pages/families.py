"""Rows of a comparison as curves: quality against budget, one for each method of a family.

A family is what stays the same along a curve: model, backend, text, and all else but the budget, the method
(allocator and its options) and the seed. Where all families have one and the same method, they are the curves
of a single one: it is they who are compared.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from owl_compress.documents.comparison import Row, Status, by_group
from owl_compress.documents.grid import varying
from owl_compress.documents.labels import label
from owl_compress.documents.option_names import option_name
from owl_compress.documents.recipe_fields import BUDGETS
from owl_compress.documents.units import Unit
from owl_compress.pages.drawing import MOST_DRAWN
from owl_compress.pages.seeds import Figure, Method, Spread, methods_of
from owl_compress.pages.words import as_asked, asked_name

_OF_BUDGET = {*map(option_name, BUDGETS), "plan"}
_OF_METHOD = {"allocator", "seed"}
_WORDLESS = {"pattern": "nm"}
"""What a label says without a word before it."""


@dataclass(frozen=True)
class Point:
    """One method at one budget: the mean over seeds, and how far it reaches.

    `budget` is as it is asked for. `low` and `high` are the least and the largest over seeds; of a single
    seed, an accuracy less and plus its standard error, and of anything else the value itself.
    """

    budget: float
    mean: float
    low: float
    high: float
    n_seeds: int


@dataclass(frozen=True)
class Curve:
    """One method over its budgets, which rise."""

    method: str
    is_baseline: bool
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Family:
    """Curves of one figure that may be compared, and what the dense model has.

    Attributes:
        name: what tells it from other families.
        axis: what the budget is called.
        budgets: all of them, rising, each with the name of its group.
        shown: what budgets are called where that is not their number: "3:8".
        curves: the methods in the order in which they come.
        dense: the figure of the dense model; None where it was not measured.
    """

    name: str
    axis: str
    budgets: Mapping[float, str]
    curves: tuple[Curve, ...]
    dense: float | None
    shown: Mapping[float, str] = field(default_factory=dict)


def families_of(rows: Sequence[Row], figure: Figure, baseline: str) -> tuple[Family, ...]:
    """The families in which the figure was measured; rows that drifted are on no curve."""
    done = [row for row in rows if row.status is Status.DONE and figure.read(row) is not None]
    compressed = [row for row in done if not row.dense and row.unit and row.asked is not None]
    of_method = _method_options(compressed)
    sizes = {_of_pattern(row) for row in compressed if "nm" in row.recipe}
    members: dict[str, list[Row]] = {}
    for row in compressed:
        members.setdefault(json.dumps(_fixed(row, of_method, sizes), sort_keys=True), []).append(row)
    members = _told_apart(members)
    fixed = [_fixed(rows_of_one[0], of_method, sizes) for rows_of_one in members.values()]
    told = ["backend", *(name for name in varying(fixed) if name not in {"backend", "unit"})]
    names = [label({_WORDLESS.get(name, name): one.get(name) for name in told}) for one in fixed]
    methods = _called([row for row in rows if not row.dense], baseline)
    return _beside(
        [
            _family(name, own, methods, figure, _dense(done, own[0], figure))
            for name, own in zip(names, members.values(), strict=True)
        ]
    )


def _told_apart(members: Mapping[str, list[Row]]) -> dict[str, list[Row]]:
    """The members of families: where groups come to one budget, as sizes may, each is a family of its own."""
    found: dict[str, list[Row]] = {}
    for key, rows in members.items():
        groups = {row.group for row in rows}
        is_clear = len(groups) <= len({(row.unit, round(row.asked or 0.0, 9)) for row in rows})
        for row in rows:
            found.setdefault(key if is_clear else f"{key} {row.group}", []).append(row)
    return found


def _beside(families: Sequence[Family]) -> tuple[Family, ...]:
    """Families of one and the same method as the curves of one: what differs is then what is compared."""
    methods = {curve.method for family in families for curve in family.curves}
    axes = {(family.axis, family.dense) for family in families}
    is_shared = len(methods) == len(axes) == 1 and len(families) > 1
    if not is_shared or any(len(family.budgets) < 2 for family in families):
        return tuple(families)
    curves = [replace(family.curves[0], method=family.name, is_baseline=False) for family in families]
    budgets = {budget: group for family in families for budget, group in family.budgets.items()}
    shown = {budget: word for family in families for budget, word in family.shown.items()}
    (method,) = methods
    return (
        replace(
            families[0], name=method, budgets=dict(sorted(budgets.items())), curves=tuple(curves), shown=shown
        ),
    )


def drawable(families: Iterable[Family]) -> list[Family]:
    """The families with figures that a picture can hold; words say what they really are."""
    return [
        replace(
            family,
            curves=tuple(
                replace(curve, points=tuple(map(_within_reach, curve.points))) for curve in family.curves
            ),
            dense=None if family.dense is None else min(family.dense, MOST_DRAWN),
        )
        for family in families
    ]


def _within_reach(point: Point) -> Point:
    mean, low, high = (min(value, MOST_DRAWN) for value in (point.mean, point.low, point.high))
    return replace(point, mean=mean, low=low, high=high)


def _called(rows: Sequence[Row], baseline: str) -> dict[str, Method]:
    """The method of each cell, under the name that it has among all that were measured in its group."""
    return {row.cell: method for method in methods_of(rows, baseline) for row in method.rows}


def _method_options(rows: Sequence[Row]) -> set[str]:
    """The options that tell methods of a group apart."""
    groups = by_group(tuple(rows)).values()
    return _OF_METHOD | {name for members in groups for name in varying([row.recipe for row in members])}


def _fixed(row: Row, of_method: Iterable[str], sizes: Collection[str]) -> dict[str, JsonValue]:
    """What of a row is the same along its curve; of N:M, where there are several `sizes`, that is M."""
    left_out = {*of_method, *_OF_BUDGET}
    kept: dict[str, JsonValue] = {name: value for name, value in row.recipe.items() if name not in left_out}
    pattern = f"N:{_of_pattern(row) if len(sizes) > 1 else 'M'}" if "nm" in row.recipe else None
    return kept | {"unit": str(row.unit), "pattern": pattern}


def _of_pattern(row: Row) -> str:
    """The M of N:M."""
    return str(row.recipe["nm"]).partition(":")[2].strip()


def _dense(done: Iterable[Row], row: Row, figure: Figure) -> float | None:
    """What the dense model of a compressed row has, loaded and evaluated in the same way."""
    for one in done:
        if one.dense and all(row.recipe.get(name) == value for name, value in one.recipe.items()):
            return figure.read(one)
    return None


def _family(
    name: str, rows: Sequence[Row], methods: Mapping[str, Method], figure: Figure, dense: float | None
) -> Family:
    unit = rows[0].unit or Unit.DENSITY
    points: dict[str, dict[float, list[Row]]] = {}
    groups: dict[float, str] = {}
    shown: dict[float, str] = {}
    for row in rows:
        budget = round(as_asked(unit, row.asked or 0.0), 9)
        groups[budget] = row.group
        if "nm" in row.recipe:
            shown[budget] = str(row.recipe["nm"])
        points.setdefault(methods[row.cell].name, {}).setdefault(budget, []).append(row)
    curves = [
        Curve(
            method,
            any(methods[row.cell].is_baseline for found in by_budget.values() for row in found),
            tuple(_point(budget, found, figure) for budget, found in sorted(by_budget.items())),
        )
        for method, by_budget in points.items()
    ]
    axis = "N:M, N kept of M" if shown else asked_name(unit)
    return Family(name, axis, dict(sorted(groups.items())), tuple(curves), dense, shown)


def _point(budget: float, rows: Sequence[Row], figure: Figure) -> Point:
    values = [value for row in rows if (value := figure.read(row)) is not None]
    spread = Spread.of(values)
    task = rows[0].tasks.get(figure.name)
    reach = (task.stderr or 0.0) if task and spread.n == 1 else 0.0
    return Point(budget, spread.mean, spread.low - reach, spread.high + reach, spread.n)
