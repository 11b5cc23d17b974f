"""The grid of a comparison: a recipe in which any value may be a list, and every list is an axis.

Several budgets are one axis, since a cell has one budget. Options that are lists by nature (`LISTS`) are one
value as they stand, and an axis as a list of lists. `cases` are mappings that add cells: what a case says
stands in the place of what the grid says, and the axes that it does not name are crossed with it. Where the
grid itself names neither budget nor plan, it holds only what its cases share.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from owl_compress.consent import CONSENT_NAMES
from owl_compress.documents.option_names import option_name, plain_name
from owl_compress.documents.recipe import RECIPE_NAMES, Recipe
from owl_compress.documents.recipe_fields import BUDGETS
from owl_compress.documents.strict_json import read_text
from owl_compress.documents.yaml12 import key_lines, load_plain
from owl_compress.errors import RequestError, nearest, shown

CASES = "cases"
MAX_CELLS = 10_000
"""More than anybody has time for: an axis that was meant as something else."""

Options = dict[str, Any]
"""Values by the names that a recipe has for them, with underscores."""


def _is_list(annotation: Any) -> bool:
    if get_origin(annotation) in {tuple, dict}:
        return True
    is_wrapped = get_origin(annotation) in {Annotated, Union, UnionType}
    return is_wrapped and any(_is_list(kind) for kind in get_args(annotation))


LISTS = frozenset(
    field.alias or name
    for name, field in Recipe.model_fields.items()
    if name != "options" and _is_list(field.annotation)
)
"""Options of a recipe that are lists by nature."""

_BUDGETS = (*BUDGETS, "plan")


@dataclass(frozen=True)
class GridNames:
    """What a grid may say besides what every recipe may.

    Attributes:
        methods: options of allocators and backends.
        settings: what is said once for all cells, and is no axis, be it a list or not.
    """

    methods: Collection[str] = ()
    settings: Collection[str] = ()


@dataclass(frozen=True)
class RawCell:
    """One combination, as it was written; `case` is the number of the case that added it, 0 for none."""

    options: Options
    case: int = 0


@dataclass(frozen=True)
class Grid:
    """All combinations in the order of the file, the first axis outermost, and what is said once for all."""

    cells: tuple[RawCell, ...]
    settings: Options = field(default_factory=dict)
    text: str = ""

    @classmethod
    def read(cls, path: Path, names: GridNames) -> "Grid":
        """Read the grid at `path`.

        Raises:
            RequestError: unreadable, not YAML, or see `parse`.
        """
        try:
            text = read_text(path)
            content = load_plain(text)
            lines = key_lines(text)
        except ValueError as error:
            raise RequestError(f"{path} is not YAML: {error}") from error
        return cls.of(content, names, _Place(str(path), lines), text)

    @classmethod
    def of(cls, content: Any, names: GridNames, place: "_Place | None" = None, text: str = "") -> "Grid":
        """The grid that plain mappings and lists stand for.

        Raises:
            RequestError: an unknown key, an axis without values or with one of them twice, no cell, or more
                than anybody has time for.
        """
        place = place or _Place("grid", {})
        if not isinstance(content, Mapping) or not content:
            raise RequestError(f"{place.name} is no grid: expected lines of the form `option: value or list`")
        top, cases = _named(content, names, place, ()), _cases(content, names, place)
        settings = {name: top.pop(name) for name in names.settings if name in top}
        branches = [_Branch(0, top)] if not cases or _names_budget(top) else []
        branches += [
            _Branch(number, _with_case(top, case), set(case)) for number, case in enumerate(cases, start=1)
        ]
        axes = [branch.axes(place) for branch in branches]
        n_cells = sum(prod(map(len, one)) for one in axes)
        if n_cells > MAX_CELLS:
            raise RequestError(
                f"{place.name} has {n_cells:,} cells, and no more than {MAX_CELLS:,} are possible: shorten a "
                "list, or write what is a list by nature as a list in a list"
            )
        cells = [
            RawCell(_joined(values), branch.case)
            for branch, one in zip(branches, axes, strict=True)
            for values in product(*one)
        ]
        return cls(tuple(cells), settings, text)


@dataclass(frozen=True)
class _Place:
    """Where a grid is written: the name of the file, and the lines of its keys."""

    name: str
    lines: Mapping[tuple[str | int, ...], int]

    def of(self, *way: str | int) -> str:
        """How a message names the place of a key."""
        line = self.lines.get(way)
        case = f"case {way[1] + 1}: " if len(way) > 1 and isinstance(way[1], int) else ""
        return f"{self.name}: {f'line {line}: ' if line else case}"


@dataclass(frozen=True)
class _Branch:
    """Values and lists that are crossed: those of the grid itself, or with one of its cases."""

    case: int
    content: Options
    own: Collection[str] = ()

    def axes(self, place: _Place) -> list[list[Options]]:
        """The values of each axis, as the options that they set; several budgets are one axis."""
        budgets: list[Options] = []
        axes: list[list[Options]] = []
        for name, value in self.content.items():
            where = place.of(*self._way(name, place))
            options = [{name: one} for one in _values(name, value, where)]
            if name not in _BUDGETS:
                axes.append(options)
            else:
                if not budgets:
                    axes.append(budgets)
                budgets += [one for one in options if one[name] is not None]
        # Budgets that are all null are as good as not given: cells without one, which say so.
        return [axis for axis in axes if axis]

    def _way(self, name: str, place: _Place) -> tuple[str | int, ...]:
        start: tuple[str | int, ...] = (CASES, self.case - 1) if name in self.own else ()
        written = (way for way in place.lines if way[:-1] == start and plain_name(way[-1]) == name)
        return next(written, (*start, option_name(name)))


def _names_budget(options: Collection[str]) -> bool:
    return any(name in options for name in _BUDGETS)


def _named(
    content: Mapping[Any, Any], names: GridNames, place: _Place, way: tuple[str | int, ...]
) -> Options:
    """What a mapping of the grid says, by the names that a recipe has.

    Raises:
        RequestError: a key that nothing is called by, one given twice, or consent.
    """
    once = () if way else names.settings
    known = {*RECIPE_NAMES, *names.methods, *once}
    found: Options = {}
    for key, value in content.items():
        where = place.of(*way, key)
        name = plain_name(key)
        if name == CASES and not way:
            continue
        if name in CONSENT_NAMES:
            raise RequestError(
                f"{where}{key} is no part of a grid: consent is given beside it, as --{option_name(name)}"
            )
        if name in names.settings and way:
            raise RequestError(
                f"{where}{option_name(name)} is said once for all cells: write it outside of cases"
            )
        if name not in known:
            words = sorted({option_name(one) for one in known} | ({CASES} if not way else set()))
            raise RequestError(f"{where}unknown key {shown(str(key))}: {nearest(option_name(name), words)}")
        if name in found:
            raise RequestError(f"{where}{option_name(name)} is given twice")
        found[name] = value
    return found


def _cases(content: Mapping[Any, Any], names: GridNames, place: _Place) -> list[Options]:
    if CASES not in content:
        return []
    given = content[CASES]
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise RequestError(f"{place.of(CASES)}cases has to be a list of at least one case")
    for number, case in enumerate(given, start=1):
        if not isinstance(case, Mapping) or not case:
            raise RequestError(
                f"{place.of(CASES)}case {number} is {shown(case)}: write options, as in "
                "`- {backend: gptq, bits: 3}`"
            )
    return [_named(case, names, place, (CASES, place_in)) for place_in, case in enumerate(given)]


def _with_case(top: Options, case: Options) -> Options:
    """The grid with a case in it; one that names a budget, or a plan, drops those of the grid."""
    kept = {
        name: value
        for name, value in top.items()
        if name not in case and not (name in _BUDGETS and _names_budget(case))
    }
    return kept | case


def _values(name: str, value: Any, where: str) -> list[Any]:
    """The values of an axis; one for what is no list, or a list by nature.

    Raises:
        RequestError: no value, one that is there twice, or a list in a list where that means nothing.
    """
    if not isinstance(value, list | tuple):
        return [value]
    shown_name = option_name(name)
    nested = [isinstance(one, list | tuple | Mapping) for one in value]
    if name in LISTS:
        if not any(nested):
            return [list(value)]
        if not all(nested):
            raise RequestError(
                f"{where}{shown_name} is a list by nature: write one value as [a, b], or an axis as "
                "[[a, b], [c]], and not both in one"
            )
    elif any(nested):
        raise RequestError(f"{where}{shown_name} takes single values, not {shown(value[nested.index(True)])}")
    if not value:
        raise RequestError(f"{where}{shown_name} has no values, which leaves no cell: name one at least")
    written = [json.dumps(one, sort_keys=True, default=str) for one in value]
    twice = next((one for one, count in Counter(written).items() if count > 1), None)
    if twice is not None:
        raise RequestError(f"{where}{shown_name} has {twice} twice, which is the same cell twice: drop one")
    return list(value)


def _joined(values: tuple[Options, ...]) -> Options:
    """One cell; None counts as not given, and a plan is made already, so that no allocator goes with it."""
    cell = {name: value for one in values for name, value in one.items() if value is not None}
    return {name: value for name, value in cell.items() if name != "allocator" or "plan" not in cell}


def varying(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The names, in the order in which they come, whose value is not the same in all cells."""
    names = dict.fromkeys(name for cell in cells for name in cell)
    for name in names:
        written = {json.dumps(cell.get(name), sort_keys=True, default=str) for cell in cells}
        if len(written) > 1:
            yield name
