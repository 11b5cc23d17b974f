"""What a model got right: zero-shot and few-shot tasks, as lm-eval scores them."""

from collections.abc import Collection, Iterable
from math import fsum, sqrt

from pydantic import Field, NonNegativeFloat

from owl_compress.documents.document import Frozen, is_none
from owl_compress.documents.units import Count, Name, PositiveCount


class Score(Frozen):
    """One metric of one task, averaged over its samples."""

    value: float
    stderr: NonNegativeFloat | None = Field(
        description="standard error of the mean over the samples, s / sqrt(n) with n - 1 in s; None for a "
        "single sample, and for metrics that have none"
    )


class TaskAccuracy(Frozen):
    """One task: its first metric, and what else lm-eval measures of it.

    For choices `metric` is "acc": the share of samples where the right choice has the largest log-likelihood
    of all, summed over its tokens. "acc_norm" among `others` is the same with every sum divided by the number
    of characters (Unicode code points, of the text of the choice without the blank before it).
    """

    task: Name
    metric: str
    value: float
    stderr: NonNegativeFloat | None = Field(description="see `Score`")
    others: dict[str, Score] = Field(default={}, description="the task's further metrics")
    samples: PositiveCount
    shots: Count = Field(description="solved samples before each question")
    chance: float | None = Field(
        default=None,
        exclude_if=is_none,
        description="accuracy of a guess: the mean of 1 / choices; None where it is not about choices",
    )
    version: str = Field(description="of the task, as lm-eval counts them")
    source: Name | None = Field(
        default=None, exclude_if=is_none, description="file that the samples come from; None for named tasks"
    )
    sha256: str | None = Field(default=None, exclude_if=is_none, description="of that file")


class AccuracyChange(Frozen):
    """The same tasks before and after, by their names."""

    dense: dict[str, TaskAccuracy] = Field(min_length=1)
    compressed: dict[str, TaskAccuracy] = Field(min_length=1)


def by_task(found: Iterable[TaskAccuracy]) -> dict[str, TaskAccuracy]:
    """The tasks by their names, in their order, as files and JSON hold them."""
    return {one.task: one for one in found}


def mean_of(found: Collection[TaskAccuracy]) -> Score:
    """The mean of the first metrics, every task counting alike, as in published tables.

    Its standard error takes the tasks as independent: sqrt(sum of squares) / number of tasks.
    """
    errors = [one.stderr for one in found if one.stderr is not None]
    stderr = sqrt(fsum(error**2 for error in errors)) / len(found) if len(errors) == len(found) else None
    return Score(value=fsum(one.value for one in found) / len(found), stderr=stderr)
