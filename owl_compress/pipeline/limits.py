"""What a request says its outcome may cost at most."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from owl_compress.allocators import Target
from owl_compress.documents.costs import CostTable, Phase
from owl_compress.documents.quantities import parsed_bytes, parsed_seconds
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.recipe_fields import LIMITS
from owl_compress.documents.units import BitsGrid, Unit
from owl_compress.errors import RequestError
from owl_compress.pipeline.methods import BACKENDS

if TYPE_CHECKING:  # a plan is made without loading torch
    from collections.abc import Mapping


@dataclass(frozen=True)
class SizeLimit:
    """The most bytes of all weight files, whole, with the index of shards."""

    n_bytes: int


@dataclass(frozen=True)
class TimeLimit:
    """The most seconds of a phase, predicted by a table; `speedup` where that is what was asked for."""

    seconds: float
    phase: Phase
    table: CostTable
    speedup: float | None = None


Limit = SizeLimit | TimeLimit


def limit_of(recipe: Recipe) -> Limit | None:
    """The limit of the recipe; None for one that asks for an average.

    Raises:
        RequestError: a cost table that cannot be read.
    """
    if recipe.size is not None:
        return SizeLimit(parsed_bytes(recipe.size))
    if recipe.cost_table is None:
        return None
    table, phase = CostTable.read(recipe.cost_table), recipe.phase or "prefill"
    if recipe.latency is not None:
        return TimeLimit(parsed_seconds(recipe.latency), phase, table)
    dense = table.seconds(phase)
    return TimeLimit(dense / (recipe.speedup or 1.0), phase, table, recipe.speedup)


def asks_for_limit(recipe: Recipe) -> bool:
    """Whether its budget is none of those that say an average."""
    return any(getattr(recipe, name) is not None for name in LIMITS)


def check_no_limit(asked: "Mapping[str, Any]") -> None:
    """Refuse limits where there is no model that they could be of.

    Raises:
        RequestError: naming one that is `asked` for.
    """
    for name in LIMITS:
        if asked.get(name) is not None:
            raise RequestError(
                f"{name} {asked[name]} is of a whole model, and allocating knows a report alone: use run, "
                "or ask for an average"
            )


def everything_kept(recipe: Recipe, shape: "Mapping[str, Any]") -> Target:
    """The largest target that the recipe allows in the unit of its backend, from where a limit goes down.

    Raises:
        RequestError: a unit in which size and time do not follow the budgets, or bounds that cannot be meant.
    """
    unit = _unit_of(recipe)
    if unit is Unit.WIDTH:
        return Target(unit, 1.0 if recipe.high is None else recipe.high, **shape)
    choices = tuple(sorted(set(recipe.bit_choices or (2, 3, 4))))
    most = choices[-1] if recipe.high is None else recipe.high
    allowed = [width for width in choices if width <= most]
    grid = BitsGrid(bits=choices)
    return Target(unit, float(allowed[-1] if allowed else most), grid=grid, **shape)


def _unit_of(recipe: Recipe) -> Unit:
    unit: Unit = BACKENDS.load(recipe.backend).unit
    if recipe.size is not None:
        if unit is Unit.DENSITY:
            raise RequestError(
                f"size {recipe.size} cannot be met by backend {recipe.backend!r}: zeros are stored like "
                f"other weights, so the size does not change: use --backend {_named(Unit.BITS, Unit.WIDTH)}"
            )
        if unit is not Unit.BITS and recipe.bit_choices is not None:
            raise RequestError(
                f"bit-choices are for budgets in bits, backend {recipe.backend!r} has {unit}: drop them"
            )
        return unit
    if unit is not Unit.WIDTH:
        name = "speedup" if recipe.speedup is not None else "latency"
        raise RequestError(
            f"{name} is for backends that make blocks narrower, and {recipe.backend!r} carries out budgets "
            f"in {unit}: use --backend {_named(Unit.WIDTH)}"
        )
    return unit


def _named(*units: Unit) -> str:
    return " or ".join(repr(name) for name in BACKENDS.names() if BACKENDS.load(name).unit in units)
