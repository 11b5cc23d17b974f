"""The cells of a grid: each a request of its own, or the reason why it is none, and short names for them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from owl_compress.allocators import reads_damage
from owl_compress.consent import NO_CONSENT, Consent
from owl_compress.documents.grid import Grid, GridNames, Options, varying
from owl_compress.documents.labels import label
from owl_compress.documents.option_names import option_name
from owl_compress.documents.recipe import RECIPE_NAMES, Recipe
from owl_compress.documents.recipe_fields import BUDGETS, Topic
from owl_compress.errors import RequestError
from owl_compress.pipeline.comparison.labels import group_label
from owl_compress.pipeline.comparison.measures import SETTINGS
from owl_compress.pipeline.methods import ALLOCATORS, AUTO, BACKENDS, DEFAULT_ALLOCATOR, DEFAULT_BACKEND
from owl_compress.pipeline.request import OF_PROFILES, Request
from owl_compress.registry import Registry

_OF_BITS = ("bit_choices", "no_tie")
_OF_TIME = ("cost_table", "phase")


@dataclass(frozen=True)
class Cell:
    """One row to be.

    Attributes:
        settings: all that the cell says, under the names on the command line.
        request: the same resolved; None where it cannot be satisfied.
        refusal: why not, in one line.
        is_dense: whether the model is left as it is: then of the request only model and evaluation count.
        said: what the grid says for it; `settings` have the defaults besides, where there is a request.
        axes: what varies in the grid, and its value here.
        name: of these values.
        group: of what has to spend the same.
    """

    settings: Mapping[str, JsonValue]
    request: Request | None
    refusal: str | None = None
    is_dense: bool = False
    said: Mapping[str, JsonValue] = field(default_factory=dict)
    axes: Mapping[str, JsonValue] = field(default_factory=dict)
    name: str = ""
    group: str = ""


@dataclass(frozen=True)
class Place:
    """Where cells are carried out: on `device` in the place of the grid's, or, of GPUs, on this one alone."""

    device: str | None = None
    gpu: str | None = None

    def of(self, device: str) -> str:
        """The device of a cell whose recipe says `device`."""
        device = self.device or device
        return self.gpu if self.gpu is not None and device in {"auto", "cuda"} else device


def grid_names() -> GridNames:
    """What a grid may say: options of every method that is registered, and what is measured."""
    every = (*ALLOCATORS.every_option(), *BACKENDS.every_option())
    return GridNames(frozenset(one.name for _, one in every), frozenset(SETTINGS))


def cells_of(
    grid: Grid, folder: Path, *, consent: Consent = NO_CONSENT, place: Place | None = None
) -> tuple[Cell, ...]:
    """The cells of a grid whose files are seen from `folder`; a dense model stands before what is made of it.

    An option counts in the cells whose allocator, backend or budget has it, and is left out of the others;
    cells that become the same by that are one. Each is carried out at `place`, see there.

    Raises:
        RequestError: the same cell twice.
    """
    given = [{"allocator": DEFAULT_ALLOCATOR, "backend": DEFAULT_BACKEND} | one.options for one in grid.cells]
    given = [_without_allocator(one) if "plan" in one else one for one in given]
    taken_by = [_taken(one) for one in given]
    anywhere = set().union(*taken_by) if taken_by else set()
    found: dict[str, tuple[str, int, Cell]] = {}
    for raw, options, taken in zip(grid.cells, given, taken_by, strict=True):
        fitted = {name: value for name, value in options.items() if name in taken or name not in anywhere}
        cell, identity = _resolved(fitted, folder, consent, place or Place())
        written = json.dumps(fitted, sort_keys=True, default=str)
        if identity in found:
            before, case, _ = found[identity]
            if (before, case) != (written, raw.case):
                raise RequestError(
                    f"the same cell is there twice, {_place(case)} and {_place(raw.case)}: "
                    f"{label(cell.settings)}: drop one of them"
                )
            continue
        found[identity] = (written, raw.case, cell)
    return _named(_with_dense([cell for _, _, cell in found.values()]))


def _place(case: int) -> str:
    return f"in case {case}" if case else "in the grid itself"


def _without_allocator(options: Options) -> Options:
    return {name: value for name, value in options.items() if name != "allocator"}


def _taken(options: Options) -> set[str]:
    """The names that the methods and the budget of a cell have a use for."""
    methods = ((ALLOCATORS, options.get("allocator")), (BACKENDS, options.get("backend")))
    taken = {name for registry, method in methods for name in _options_of(registry, method)}
    taken |= RECIPE_NAMES - {*_OF_BITS, *_OF_TIME, *OF_PROFILES, "profile", "candidates"}
    if {"bits", "size"} & options.keys():
        taken |= set(_OF_BITS)
    if {"speedup", "latency"} & options.keys():
        taken |= set(_OF_TIME)
    if options.get("allocator") == AUTO:
        taken |= {*OF_PROFILES, "profile", "candidates"}
    if _reads_damage(options.get("allocator")):
        taken |= {*OF_PROFILES, "profile"}
    return taken


def _options_of(registry: Registry, method: Any) -> frozenset[str]:
    known = isinstance(method, str) and method in registry.names()
    return frozenset(one.name for one in registry.options(method)) if known else frozenset()


@cache
def _reads_damage(allocator: Any) -> bool:
    if allocator not in ALLOCATORS.names():
        return False
    try:
        return reads_damage(ALLOCATORS.create(allocator))
    except RequestError:  # it cannot do without some option
        return False


def _resolved(options: Options, folder: Path, consent: Consent, place: Place) -> tuple[Cell, str]:
    """The cell, and what makes it the same as another one."""
    said = settings = {option_name(name): value for name, value in options.items()}
    identity = json.dumps(settings, sort_keys=True, default=str)
    try:
        recipe = Recipe.from_options(options, "options").beside(folder)
        identity = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
        settings = recipe.settings
        recipe = recipe.model_copy(update={"device": place.of(recipe.device)})
        return Cell(settings, Request.of(recipe, consent=consent), said=said), identity
    except RequestError as error:
        return Cell(settings, None, " ".join(str(error).split()), said=said), identity


def _with_dense(cells: Sequence[Cell]) -> list[Cell]:
    """The cells by model, in the order in which models come, each with the dense one before it.

    There is one for each way in which it is loaded or evaluated.
    """
    by_model: dict[str, list[Cell]] = {}
    dense: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        model = str(cell.settings.get("model"))
        by_model.setdefault(model, []).append(cell)
        if cell.request is not None:
            settings = {name: value for name, value in cell.settings.items() if name in _OF_DENSE}
            key = json.dumps(settings, sort_keys=True)
            one = Cell(settings, cell.request, is_dense=True)
            dense.setdefault(model, {}).setdefault(key, one)
    return [
        cell for model, members in by_model.items() for cell in (*dense.get(model, {}).values(), *members)
    ]


def _of_dense() -> frozenset[str]:
    names = {
        "model",
        "revision",
        "dtype",
        "batch-size",
        "device",
        "seq-len",
        "bos",
        "text-field",
        "chat-template",
    }
    for name, one in Recipe.model_fields.items():
        extra = one.json_schema_extra
        if isinstance(extra, dict) and extra.get("topic") in {Topic.EVALUATION, Topic.TASKS}:
            names.add(option_name(one.alias or name))
    return frozenset(names)


_OF_DENSE = _of_dense()
"""Settings that the dense model's figures depend on."""


def _named(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    cells = list(cells)
    names = [name for name in _varying([cell for cell in cells if not cell.is_dense]) if name != "device"]
    labelled = []
    for cell in cells:
        axes = {name: cell.settings[name] for name in names if name in cell.settings}
        if cell.is_dense:
            varied = {name: value for name, value in axes.items() if name in _OF_DENSE}
            name = " ".join(["dense", label(varied)]).strip()
            labelled.append(replace(cell, axes=varied, name=name, group=name))
            continue
        own = _options_of(ALLOCATORS, cell.settings.get("allocator"))
        own -= _options_of(BACKENDS, cell.settings.get("backend"))
        of_allocator = _OF_ALLOCATION | set(map(option_name, own))
        shared = {name: value for name, value in axes.items() if name not in of_allocator | _BUDGET_NAMES}
        group = group_label(cell.settings, shared, cell.request)
        name = label(axes) or label({"allocator": cell.settings.get("allocator")}) or group
        labelled.append(replace(cell, axes=axes, name=name, group=group))
    return tuple(labelled)


def _varying(cells: Sequence[Cell]) -> list[str]:
    """What tells the cells apart; what a refused one leaves out, such as a default, tells it from none."""
    resolved = [cell.settings for cell in cells if cell.request is not None]
    if len(resolved) == len(cells):
        return list(varying(resolved))
    telling = {*varying(resolved), *varying([cell.said for cell in cells])}
    return [name for name in varying([cell.settings for cell in cells]) if name in telling]


_BUDGET_NAMES = frozenset(map(option_name, BUDGETS))

_OF_ALLOCATION = frozenset(
    {"allocator", "plan", "seed", "low", "high", "set", "granularity", "solver", "no-tie"}
    | {"profile", "candidates", "measure-samples", *map(option_name, OF_PROFILES)}
)
"""What says how a budget is divided, and not how large it is."""
