"""From the names and numbers of a request to allocators, targets and backends."""

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from owl_compress.allocators import Allocator, Target, create_allocator
from owl_compress.backends import BACKENDS
from owl_compress.errors import RequestError
from owl_compress.recipe import BUDGETS, Recipe

if TYPE_CHECKING:  # a plan is made without loading torch
    from owl_compress.backend import Backend

_SHAPE = ("low", "high", "pins", "skips", "granularity", "solver", "tie")


def create_backend(name: str, options: Mapping[str, Any] | None = None) -> "Backend":
    """The backend registered as `name`, with the options that were given (None counts as not given).

    Raises:
        RequestError: unknown name, or an option the backend does not take.
    """
    kind = BACKENDS.load(name)
    given = {key: value for key, value in (options or {}).items() if value is not None}
    known = [field.name for field in fields(kind)]
    for option in given.keys() - set(known):
        takes = ", ".join(known) or "no options"
        raise RequestError(f"backend {name!r} takes no {option.replace('_', '-')}; it takes: {takes}")
    try:
        backend: Backend = kind(**given)
    except ValueError as error:
        raise RequestError(f"backend {name!r}: {error}") from error
    return backend


def allocator_of(recipe: Recipe) -> Allocator:
    """The allocator of the recipe, with its options."""
    given = {"metric": recipe.metric, "lam": recipe.lam, "law": recipe.owl_law}
    if recipe.allocator == "random":
        given["seed"] = recipe.seed  # type: ignore[assignment]
    return create_allocator(recipe.allocator or "", given)


def backend_of(recipe: Recipe) -> "Backend":
    """The backend of the recipe, with its options."""
    return create_backend(recipe.backend, {"scope": recipe.scope})


def target_of(recipe: Recipe) -> Target:
    """The target of the recipe, in the unit of its budget."""
    shape: dict[str, Any] = {
        "low": recipe.low,
        "high": recipe.high,
        "pins": recipe.set_,
        "skips": recipe.skip,
        "granularity": recipe.granularity,
        "solver": recipe.solver or "proportional",
    }
    budgets = {name: getattr(recipe, name) for name in BUDGETS}
    return _target({**budgets, "bit_choices": recipe.bit_choices}, shape)


def _target(budget: Mapping[str, Any], shape: Mapping[str, Any]) -> Target:
    if budget.get("sparsity") is not None:
        return Target.from_sparsity(budget["sparsity"], **shape)
    if budget.get("nm") is not None:
        return Target.from_nm(budget["nm"], **shape)
    if budget.get("prune_ratio") is not None:
        return Target.from_prune_ratio(budget["prune_ratio"], **shape)
    if budget.get("bits") is not None:
        return Target.from_bits(budget["bits"], tuple(budget.get("bit_choices") or (2, 3, 4)), **shape)
    raise RequestError("no budget given: name one of sparsity, nm, prune_ratio, bits")


def split_target(options: Mapping[str, Any]) -> tuple[Target, dict[str, Any]]:
    """The target among `options`, and the options that are left for the allocator.

    Raises:
        RequestError: not exactly one budget, or one that cannot be meant.
    """
    named = [name for name in BUDGETS if options.get(name) is not None]
    if len(named) != 1:
        raise RequestError(f"give exactly one of {', '.join(BUDGETS)}; got {' and '.join(named) or 'none'}")
    budget = {key: value for key, value in options.items() if key in {*BUDGETS, "bit_choices"}}
    shape = {key: value for key, value in options.items() if key in _SHAPE}
    rest = {key: value for key, value in options.items() if key not in budget and key not in shape}
    return _target(budget, shape), rest
