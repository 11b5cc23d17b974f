"""What no choice can meet, told from shapes alone before anything is measured."""

from owl_compress.allocators import allocate
from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.compression.contract import PlanChecker
from owl_compress.documents.plan import Plan
from owl_compress.documents.recipe import Recipe
from owl_compress.importance.estimator import outline
from owl_compress.models.structure import find_structure
from owl_compress.pipeline.request import backend_of, target_of


def check_request(loaded: LoadedModel, recipe: Recipe) -> None:
    """Refuse a budget that the backend of `recipe` cannot meet on this model, whoever divides it.

    Every allocator spends the same budget, so an equal share for every block stands for all of them. Where
    parts may go whole it does not: which of them go depends on the plan.

    Raises:
        RequestError: what the backend, or the target itself, refuses.
    """
    if isinstance(backend_of(recipe), PlanChecker) and not recipe.allow_empty:
        check_plan(loaded, recipe, allocate(outline(loaded.model), "uniform", target_of(recipe)))


def check_plan(loaded: LoadedModel, recipe: Recipe, plan: Plan) -> None:
    """Refuse a plan that the backend of `recipe` cannot carry out on this model.

    Raises:
        RequestError: what the backend refuses.
    """
    backend = backend_of(recipe)
    if isinstance(backend, PlanChecker):
        backend.check_plan(find_structure(loaded.model), plan)
