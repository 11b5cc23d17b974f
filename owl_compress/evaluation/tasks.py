"""Zero-shot and few-shot accuracy of a model in memory, as lm-eval scores it."""

import json
import logging
import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import nn
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from owl_compress.arguments import checked
from owl_compress.device import given_device
from owl_compress.documents.accuracy import Score, TaskAccuracy
from owl_compress.documents.disk import write_text
from owl_compress.documents.paths import given_path
from owl_compress.errors import RequestError
from owl_compress.evaluation.perplexity import placed
from owl_compress.evaluation.task_files import TaskFile, read_task_file, task_name
from owl_compress.evaluation.task_names import check_installed, check_known, expanded, tasks_in
from owl_compress.evaluation.undisturbed import undisturbed_process
from owl_compress.memory import memory_errors
from owl_compress.models.state import evaluation_mode
from owl_compress.progress import SILENT, Progress, shown

if TYPE_CHECKING:  # an extra
    from owl_compress.evaluation.task_loading import LoadedTasks

logger = logging.getLogger(__name__)

_ACCURACY = "acc"
_CHOICES = "multiple_choice"
_NO_FILTER = "none"


@checked
@dataclass(frozen=True)
class TaskOptions:
    """Which tasks, and how they are asked.

    Attributes:
        tasks: names of lm-eval, or of those in `path`; "owl7" stands for the seven of the OWL paper.
        files: samples of one's own, a file of JSON lines each; see `owl_compress.evaluation.task_files`.
        path: a task file of lm-eval's kind (YAML), or a folder of these. Functions that it names are run.
            Without any `tasks` and `files` all of its tasks are meant.
        limit: samples of each task, the first ones; None for all.
        shots: solved samples before each question; None for as many as the task itself says, mostly none.
        seed: of their drawing.
        batch_size: choices in one pass over the model.
    """

    tasks: tuple[str, ...] = ()
    files: tuple[Path | str, ...] = ()
    path: Path | str | None = None
    limit: int | None = None
    shots: int | None = None
    seed: int = 0
    batch_size: int = 1

    def __post_init__(self) -> None:
        if not self.tasks and not self.files and self.path is None:
            raise RequestError("no task is named: give --tasks, --task-file or --task-path")
        for name, value, least in (
            ("limit", self.limit, 1), ("num-fewshot", self.shots, 0), ("batch-size", self.batch_size, 1)
        ):  # fmt: skip
            if value is not None and value < least:
                raise RequestError(f"{name} {value} is too few: it has to be {least} or more")


@dataclass(frozen=True)
class Tasks:
    """Tasks that are loaded, with their samples: any number of models may be held against them."""

    options: TaskOptions
    loaded: "LoadedTasks"

    @classmethod
    @checked
    def of(cls, options: TaskOptions, progress: Progress = SILENT) -> "Tasks":
        """Find the tasks and load their samples; no model is needed for that.

        Raises:
            RequestError: lm-eval is missing, a name is unknown or there twice, a file is not as it has to be
                or lacks samples for so many shots, or samples cannot be downloaded.
        """
        check_installed()
        _check_names_of_files(options.files)
        files = [read_task_file(path) for path in options.files]
        place = None if options.path is None else _checked_place(options.path)
        own = tasks_in(place) if place else {}
        names = expanded(options.tasks)
        if place and not names and not files:
            names = _all_of(own, place)
        check_known(names, own)
        loaded = shown(progress, "loading tasks", lambda: _load(names, own, place, files))
        loaded.prepare_(options.shots, options.seed)
        return cls(options, loaded)


@checked
def accuracy(
    model: Annotated[Any, nn.Module],
    tokenizer: Any,
    tasks: TaskOptions | Tasks,
    *,
    device: torch.device | str | None = None,
    progress: Progress = SILENT,
    log: Path | str | None = None,
) -> tuple[TaskAccuracy, ...]:
    """Score a causal language model on tasks, one result for each, in the order in which they are named.

    All is lm-eval's: prompts, tokens, log-likelihoods (in float32, see
    `owl_compress.evaluation.harness.LiveModel`), metrics and their standard errors. A group that adds its
    members up is one result. Prompts begin with what the tokenizer puts there by itself; no chat template
    is used. The model keeps its weights, mode and place; with `device` it is moved there for the duration.
    Random numbers, logging and environment of the process are left as they were.

    `log` is written with a line of JSON for every sample: what was asked, what the model made of it, and what
    that counts.

    Raises:
        RequestError: see `Tasks.of`; or a log-likelihood is NaN, a choice is longer than the model's context,
            or memory is short.
    """
    if not isinstance(tokenizer, PreTrainedTokenizer | PreTrainedTokenizerFast):
        raise RequestError(
            f"lm-eval scores with a tokenizer of transformers, and this is {type(tokenizer).__name__}"
        )
    tasks = tasks if isinstance(tasks, Tasks) else Tasks.of(tasks, progress)
    options, loaded = tasks.options, tasks.loaded
    loaded.prepare_(options.shots, options.seed)  # the same draws for every model
    with ExitStack() as state:
        state.enter_context(memory_errors("scoring tasks"))
        state.enter_context(placed(model, given_device(device)))
        state.enter_context(evaluation_mode(model))
        state.enter_context(undisturbed_process())
        from owl_compress.evaluation import harness  # noqa: PLC0415 - an extra, and slow to import

        live = harness.LiveModel(model, tokenizer, options.batch_size)
        found = harness.scored(live, loaded, options.limit, progress)
    if live.cut:
        logger.warning(
            "%d of the prompts lost their beginning: with its choice the longest has %d tokens, and the "
            "model takes %d",
            len(live.cut),
            live.longest,
            live.max_length,
        )
    if log is not None:
        write_text(given_path(log), "".join(_lines(found["samples"])))
    return tuple(_accuracy(name, found, loaded) for name in loaded.rows)


def _check_names_of_files(paths: Iterable[Path | str]) -> None:
    """Refuse two files whose tasks would have one name."""
    seen: dict[str, Path | str] = {}
    for path in paths:
        name = task_name(Path(path))
        if name in seen:
            raise RequestError(
                f"task files {seen[name]} and {path} would both be task {name!r}: rename one, or drop it"
            )
        seen[name] = path


def _checked_place(path: Path | str) -> Path:
    place = given_path(path)
    if not place.exists():
        raise RequestError(f"task path {path} does not exist: name a task file (.yaml), or a folder of them")
    return place


def _all_of(own: Mapping[str, Path | None], place: Path) -> tuple[str, ...]:
    names = tuple(name for name, file in own.items() if file)
    if not names:
        raise RequestError(f"{place} holds no task: a task file (.yaml) has a line `task: NAME`")
    return names


def _load(
    names: tuple[str, ...], own: Mapping[str, Path | None], place: Path | None, files: list[TaskFile]
) -> "LoadedTasks":
    with undisturbed_process():
        from owl_compress.evaluation.task_loading import load_tasks  # noqa: PLC0415 - an extra, and slow

        return load_tasks(names, own, place, files)


def _accuracy(name: str, found: Mapping[str, Any], loaded: "LoadedTasks") -> TaskAccuracy:
    metrics = found["results"][name]
    scores = dict(_scores(metrics))
    first = _ACCURACY if _ACCURACY in scores else next(iter(scores), None)
    if first is None:
        raise RequestError(f"task {name!r} came to no finite number: leave it out")
    main, file = scores.pop(first), loaded.files.get(name)
    return TaskAccuracy(
        task=name,
        metric=first,
        value=main.value,
        stderr=main.stderr,
        others=scores,
        samples=metrics["sample_len"],
        shots=found["n-shot"].get(name) or 0,
        chance=_chance(loaded.tasks.get(name), found["samples"].get(name, ()))
        if first == _ACCURACY
        else None,
        version=str(found["versions"].get(name) or ""),
        source=file and str(file.path),
        sha256=file and file.sha256,
    )


def _scores(metrics: Mapping[str, Any]) -> Iterable[tuple[str, Score]]:
    """The metrics of a task: lm-eval keeps them as "acc,none" and "acc_stderr,none", with the filter last."""
    for key, value in metrics.items():
        metric, comma, filtered = key.partition(",")
        number = _finite(value)
        if not comma or metric.endswith("_stderr") or number is None:
            continue
        stderr = _finite(metrics.get(f"{metric}_stderr,{filtered}"))
        yield (metric if filtered == _NO_FILTER else key), Score(value=number, stderr=stderr)


def _finite(value: Any) -> float | None:
    """A number of Python's or numpy's; None for words ("N/A"), NaN and Inf."""
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def _chance(task: Any, samples: Iterable[Mapping[str, Any]]) -> float | None:
    """What guessing comes to; None for what is no choice, or a group of tasks."""
    if task is None or task.OUTPUT_TYPE != _CHOICES:
        return None
    shares = [1 / len(task.doc_to_choice(sample["doc"])) for sample in samples]
    return math.fsum(shares) / len(shares)


def _lines(samples: Mapping[str, Iterable[Mapping[str, Any]]]) -> Iterable[str]:
    """The log: a line for every sample of every task, under every filter."""
    for task, rows in samples.items():
        for row in rows:
            line = {
                "task": task,
                "sample": row["doc_id"],
                "asked": row["arguments"],
                "answers": row["filtered_resps"],
                "target": row["target"],
                **({} if row["filter"] == _NO_FILTER else {"filter": row["filter"]}),
                **{metric: row[metric] for metric in row["metrics"]},
            }
            yield json.dumps(line, ensure_ascii=False, default=str) + "\n"
