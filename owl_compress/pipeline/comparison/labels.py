"""What groups of cells are called, by the budget that their members have to spend alike."""

from collections.abc import Mapping

from pydantic import JsonValue

from owl_compress.documents.labels import label
from owl_compress.documents.option_names import option_name
from owl_compress.documents.plan import Plan
from owl_compress.documents.recipe_fields import BUDGETS
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.pipeline.request import Request


def group_label(
    settings: Mapping[str, JsonValue], shared: Mapping[str, JsonValue], request: Request | None
) -> str:
    """What a group is called: backend, budget, and what else of its settings varies in the grid."""
    rest = {name: value for name, value in shared.items() if name != "backend"}
    budget = _budget(settings, request.plan if request else None)
    return label({"backend": settings.get("backend"), **budget, **rest})


def _budget(settings: Mapping[str, JsonValue], plan: Plan | None) -> dict[str, JsonValue]:
    """The budget as an option; what a plan was made for, the same as if it were asked for."""
    if plan is None:
        return {name: settings[name] for name in map(option_name, BUDGETS) if name in settings}
    if isinstance(plan.grid, KeptOfGrid):
        return {"nm": plan.grid.shown(plan.target)}
    named = {Unit.DENSITY: "sparsity", Unit.WIDTH: "prune-ratio", Unit.BITS: "bits"}[plan.unit]
    return {named: plan.target if plan.unit is Unit.BITS else round(1 - plan.target, 9)}
