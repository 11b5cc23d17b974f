"""The tables of accuracy on tasks."""

from collections.abc import Sequence

from owl_compress.cli.sheet import Column, Sheet
from owl_compress.documents.accuracy import AccuracyChange, Score, TaskAccuracy, mean_of
from owl_compress.pages.words import score_in_words

_MEAN = "mean"


def accuracy_table(found: Sequence[TaskAccuracy]) -> Sheet:
    """One model: a row for each task, and the mean where there are several of one metric."""
    further = list(dict.fromkeys(name for one in found for name in one.others))
    mean = [mean_of(found)] if _are_alike(found) else []
    return Sheet(
        "Accuracy on tasks",
        (
            *_names(found, mean),
            Column("value", _values(found, mean)),
            *(
                Column(name, tuple(_other(one, name) for one in found) + ("",) * len(mean), is_optional=True)
                for name in further
            ),
            *_conditions(found, mean),
        ),
        _notes(found),
    )


def accuracy_change_table(change: AccuracyChange) -> Sheet:
    """The same tasks before and after."""
    before, after = list(change.dense.values()), list(change.compressed.values())
    means = [[mean_of(found)] if _are_alike(before) else [] for found in (before, after)]
    return Sheet(
        "Accuracy on tasks",
        (
            *_names(before, means[0]),
            Column("before", _values(before, means[0])),
            Column("after", _values(after, means[1])),
            *_conditions(before, means[0]),
        ),
        _notes(before),
    )


def _are_alike(found: Sequence[TaskAccuracy]) -> bool:
    return len(found) > 1 and len({one.metric for one in found}) == 1


def _names(found: Sequence[TaskAccuracy], mean: Sequence[Score]) -> tuple[Column, Column]:
    return (
        Column("task", (*(one.task for one in found), *[_MEAN] * len(mean)), is_text=True),
        Column("metric", (*(one.metric for one in found), *[""] * len(mean)), is_text=True),
    )


def _values(found: Sequence[TaskAccuracy], mean: Sequence[Score]) -> tuple[str, ...]:
    return (*map(score_in_words, found), *map(score_in_words, mean))


def _conditions(found: Sequence[TaskAccuracy], mean: Sequence[Score]) -> tuple[Column, ...]:
    """What the numbers are to be read with."""
    blank = ("",) * len(mean)
    return (
        Column("guessing", (*("" if one.chance is None else f"{one.chance:.4f}" for one in found), *blank)),
        Column("samples", (*(f"{one.samples:,}" for one in found), *blank)),
        Column("shots", (*(str(one.shots) for one in found), *blank)),
    )


def _other(found: TaskAccuracy, name: str) -> str:
    return score_in_words(found.others[name]) if name in found.others else ""


def _notes(found: Sequence[TaskAccuracy]) -> tuple[str, ...]:
    return ("± one standard error",) if any(one.stderr is not None for one in found) else ()
