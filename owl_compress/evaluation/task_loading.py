"""From what a user asks for to tasks that lm-eval can score. Imported only where lm-eval is there."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from owl_compress.errors import RequestError
from owl_compress.evaluation.task_files import TaskFile
from owl_compress.evaluation.task_names import stock_tasks
from owl_compress.reach import hub_within_reach

logger = logging.getLogger(__name__)

_SPLIT = "test"
_VERSION = "1"
"""Of the way in which samples of a file are asked: to be raised when that changes."""


@dataclass(frozen=True)
class LoadedTasks:
    """Tasks with their samples, as lm-eval holds them.

    Attributes:
        tasks: by name, every one by itself.
        groups: by name; what several tasks come to together.
        rows: names, of `tasks` and `groups`, that were asked for, in order.
        files: by name, what tasks from files were read from.
    """

    tasks: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    rows: list[str] = field(default_factory=list)
    files: dict[str, TaskFile] = field(default_factory=dict)

    def add_(self, name: str, found: Mapping[str, Any]) -> None:
        """Take in what lm-eval loaded under `name`.

        Raises:
            RequestError: a task of it is there already.
        """
        twice = next((one for one in found["tasks"] if one in self.tasks), None)
        if twice is not None:
            raise RequestError(
                f"there are two tasks {twice!r} in what is asked for: drop one, or rename its file"
            )
        self.tasks.update(found["tasks"])
        self.groups.update(found["groups"])
        whole = found["groups"].get(name)
        self.rows.extend([name] if whole is not None and whole.has_aggregation else found["tasks"])

    def prepare_(self, shots: int | None, seed: int) -> None:
        """Set what stands before each question: `shots` solved samples, or as many as the task itself says.

        lm-eval has tasks that are always asked without any; these stay so, and it is told.

        Raises:
            RequestError: more than there are samples to take them from.
        """
        for name, task in self.tasks.items():
            own = task.get_config("num_fewshot")
            if own is None or (shots is not None and own != 0):
                task.set_config(key="num_fewshot", value=shots or 0)
            elif shots:
                logger.warning(
                    "task %s is always asked without solved samples: --num-fewshot is not for it", name
                )
            task.set_fewshot_seed(seed=seed)
            _check_shots(name, task)


def load_tasks(
    names: Sequence[str], own: Mapping[str, Path | None], place: Path | None, files: Sequence[TaskFile]
) -> LoadedTasks:
    """Load the tasks called so, of the user's `own` in `place` or of lm-eval, and those of the `files`.

    Raises:
        RequestError: two of one name, a task that cannot be loaded, or whose samples cannot.
    """
    loaded = LoadedTasks()
    if names:
        manager = _manager(names, own, place)
        before = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            with hub_within_reach() as reachable:
                for name in names:
                    loaded.add_(name, _found(manager, name, own, reachable=reachable))
        finally:
            if not before:
                datasets.enable_progress_bars()
    manager = TaskManager(include_defaults=False)
    for file in files:
        loaded.add_(file.name, manager.load([_config(file)]))
        loaded.files[file.name] = file
    return loaded


def _manager(names: Sequence[str], own: Mapping[str, Path | None], place: Path | None) -> TaskManager:
    """lm-eval's list of tasks, read only where a group is asked for, whose members it is needed to find."""
    if all(own.get(name) or stock_tasks().get(name) for name in names):
        return TaskManager(include_defaults=False)
    return TaskManager(include_path=str(place) if place and place.is_dir() else None)


def _found(
    manager: TaskManager, name: str, own: Mapping[str, Path | None], *, reachable: bool
) -> Mapping[str, Any]:
    path = own[name] if name in own else stock_tasks()[name]
    try:
        found: Mapping[str, Any] = manager.load([str(path) if path else name])
    # Loaders, templates, and code of tasks raise whatever they like.
    except Exception as error:
        raise _cannot_load(name, path, error, reachable=reachable) from error
    return found


def _cannot_load(name: str, path: Path | None, error: Exception, *, reachable: bool) -> RequestError:
    data = _data_set(path)
    remedy = "give samples of your own with --task-file FILE.jsonl"
    if not reachable:
        return RequestError(
            f"task {name!r} needs its data set{data} from the Hugging Face hub, which cannot be reached, and "
            f"it is not in the cache of earlier downloads: check the network, or {remedy}"
        )
    problem = (str(error).strip() or type(error).__name__).splitlines()[0]
    return RequestError(
        f"task {name!r} with its data set{data} cannot be loaded ({problem}): look into that, or {remedy}"
    )


def _data_set(path: Path | None) -> str:
    try:
        name = load_yaml(path, resolve_func=False).get("dataset_path") if path else None
    except Exception:  # noqa: BLE001 - it is only for a message, and the file may be what is wrong
        return ""
    return f" {name!r}" if name else ""


def _config(file: TaskFile) -> dict[str, Any]:
    """The samples of a file as a task of lm-eval; those solved before a question are others of the file."""
    rows = [
        {"prompt": one.prompt, "choices": list(one.choices), "label": one.label} for one in file.questions
    ]
    return {
        "task": file.name,
        "custom_dataset": lambda **_: {_SPLIT: datasets.Dataset.from_list(rows)},
        "output_type": "multiple_choice",
        "test_split": _SPLIT,
        "fewshot_split": _SPLIT,
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metadata": {"version": _VERSION},
    }


def _check_shots(name: str, task: Any) -> None:
    shots, sampler = task.get_config("num_fewshot"), getattr(task, "sampler", None)
    if not shots or sampler is None:
        return
    # Taken from the samples that are asked, the one that is asked falls away.
    is_same = task.get_config("fewshot_split") in {None, task.get_config("test_split")}
    n_others = len(sampler.df) - (1 if is_same else 0)
    if shots > n_others:
        raise RequestError(
            f"--num-fewshot {shots} is more than the {n_others} other samples of task {name!r}: ask for fewer"
        )
