"""What a plan has to meet: the budget that options name, and what limits the answer besides."""

from collections.abc import Mapping
from typing import Any

from owl_compress.allocators import Target
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.recipe_fields import AVERAGES, BUDGETS
from owl_compress.errors import RequestError
from owl_compress.pipeline.limits import check_no_limit

_SHAPE = (
    "low", "high", "pins", "skips", "granularity", "solver", "tie", "parts", "protect_first", "protect_last",
)  # fmt: skip


def target_of(recipe: Recipe) -> Target:
    """The target of the recipe, in the unit of its budget.

    Raises:
        RequestError: a target that no plan can meet.
    """
    budgets = {name: getattr(recipe, name) for name in BUDGETS}
    return _target({**budgets, "bit_choices": recipe.bit_choices}, shape_of(recipe))


def shape_of(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe limits the answer besides its budget."""
    return {
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


def _target(budget: Mapping[str, Any], shape: Mapping[str, Any]) -> Target:
    check_no_limit(budget)
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
        raise RequestError(f"give exactly one of {', '.join(AVERAGES)}; got {' and '.join(named) or 'none'}")
    budget = {key: value for key, value in options.items() if key in {*BUDGETS, "bit_choices"}}
    shape = {key: value for key, value in options.items() if key in _SHAPE and value is not None}
    rest = {key: value for key, value in options.items() if key not in {*budget, *_SHAPE}}
    return _target(budget, shape), rest
