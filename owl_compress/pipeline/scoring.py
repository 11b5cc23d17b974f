"""Tasks as they are asked for, on the command line or in a recipe."""

from collections.abc import Mapping
from typing import Any

from owl_compress.documents.option_names import option_name
from owl_compress.documents.recipe import Recipe
from owl_compress.errors import RequestError
from owl_compress.evaluation.tasks import TaskOptions

_NAMING = ("tasks", "task_file", "task_path")
_SAYING = ("limit", "num_fewshot")
"""Options of a recipe that name tasks, and that say how they are asked."""


def task_options(given: Mapping[str, Any]) -> TaskOptions | None:
    """What options under their names in a recipe ask for; None where they name no task.

    Raises:
        RequestError: a value that cannot be meant, or one that says how, where no task is named.
    """
    if not any(given.get(name) not in (None, (), []) for name in _NAMING):  # "" names an empty task
        for name in _SAYING:
            if given.get(name) is not None:
                raise RequestError(
                    f"--{option_name(name)} is of tasks: name some with --tasks, --task-file or --task-path"
                )
        return None
    fields = Recipe.model_fields
    names = () if given.get("tasks") is None else given["tasks"]
    return TaskOptions(
        tasks=tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else tuple(names),
        files=tuple(given.get("task_file") or ()),
        path=given.get("task_path"),
        limit=given.get("limit"),
        shots=given.get("num_fewshot"),
        seed=given.get("seed", fields["seed"].default),
        batch_size=given.get("batch_size", fields["batch_size"].default),
    )


def tasks_of(recipe: Recipe) -> TaskOptions | None:
    """The tasks that a recipe asks for."""
    names = (*_NAMING, *_SAYING, "seed", "batch_size")
    return task_options({name: getattr(recipe, name) for name in names})
