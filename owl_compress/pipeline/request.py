"""From the names and numbers of a request to allocators, targets and backends."""

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from owl_compress.allocators import Allocator, Target, create_allocator
from owl_compress.backends import BACKENDS
from owl_compress.documents.recipe import BUDGETS, DECILM_STEP, Recipe
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError

if TYPE_CHECKING:  # a plan is made without loading torch
    from owl_compress.compression.contract import AnyBackend

_SHAPE = (
    "low", "high", "pins", "skips", "granularity", "solver", "tie", "parts", "protect_first", "protect_last",
)  # fmt: skip


def create_backend(name: str, options: Mapping[str, Any] | None = None) -> "AnyBackend":
    """The backend registered as `name`, with the options that were given.

    None counts as not given; the word "none" stands for None itself.

    Raises:
        RequestError: unknown name, or an option the backend does not take.
    """
    kind = BACKENDS.load(name)
    given = {key: value for key, value in (options or {}).items() if value is not None}
    known = [field.name for field in fields(kind)]
    for option in given.keys() - set(known):
        takes = ", ".join(map(_as_typed, known)) or "no options"
        raise RequestError(f"backend {name!r} takes no {_as_typed(option)}; it takes: {takes}")
    try:
        backend: AnyBackend = kind(
            **{key: None if value == "none" else value for key, value in given.items()}
        )
    except ValueError as error:
        raise RequestError(f"backend {name!r}: {error}") from error
    return backend


def _as_typed(option: str) -> str:
    """The name that an option of a backend has on the command line."""
    turned = {"symmetric": "asymmetric", "group_order": "no-group-order"}
    return turned.get(option, option.replace("_", "-"))


def allocator_of(recipe: Recipe) -> Allocator:
    """The allocator of the recipe, with its options."""
    given: dict[str, Any] = {"metric": recipe.metric, "lam": recipe.lam, "law": recipe.owl_law}
    if recipe.allocator == "random":
        given["seed"] = recipe.seed
    return create_allocator(recipe.allocator or "", given)


def backend_of(recipe: Recipe) -> "AnyBackend":
    """The backend of the recipe, with its options."""
    options = {
        "scope": recipe.scope,
        "group_size": recipe.group_size,
        "symmetric": False if recipe.asymmetric else None,
        "mse": recipe.mse or None,
        "activation_order": recipe.activation_order or None,
        "group_order": False if recipe.no_group_order else None,
        "importance": recipe.importance,
        "taylor_variant": recipe.taylor_variant,
        "gradient_samples": recipe.gradient_samples,
        "round_to": recipe.round_to or (DECILM_STEP if recipe.export == "decilm" else None),
        "repair": recipe.repair or None,
        "allow_empty": recipe.allow_empty or None,
        "uniform_width": recipe.uniform_width or None,
        "seed": recipe.seed if recipe.importance == "random" else None,
    }
    return create_backend(recipe.backend, options)


def check_unit(backend: str, unit: Unit) -> None:
    """Refuse a backend that does not carry out budgets in `unit`; those that do are named.

    Raises:
        RequestError: see above.
    """
    own = BACKENDS.load(backend).unit
    if own is unit:
        return
    able = [repr(name) for name in BACKENDS.names() if BACKENDS.load(name).unit is unit]
    remedy = f"use --backend {' or '.join(able)}" if able else "no backend here does that"
    raise RequestError(f"backend {backend!r} carries out budgets in {own}, these are in {unit}: {remedy}")


def target_of(recipe: Recipe) -> Target:
    """The target of the recipe, in the unit of its budget."""
    shape: dict[str, Any] = {
        "low": recipe.low,
        "high": recipe.high,
        "pins": recipe.set_,
        "skips": recipe.skip,
        "granularity": recipe.granularity,
        "solver": recipe.solver or "proportional",
        "tie": not recipe.no_tie,
        "parts": recipe.parts,
        "protect_first": recipe.protect_first,
        "protect_last": recipe.protect_last,
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
