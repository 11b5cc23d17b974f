"""What is recorded of a task."""

import pytest
from pydantic import ValidationError

from owl_compress.documents.accuracy import AccuracyChange, Score, TaskAccuracy, by_task, mean_of


def accuracy(task: str = "boolq", **changes) -> TaskAccuracy:
    usual = {"metric": "acc", "value": 0.5, "stderr": 0.1, "samples": 20, "shots": 0, "version": "2.0"}
    return TaskAccuracy(task=task, **{**usual, **changes})


def test_tasks_are_found_by_their_names_in_the_order_they_were_asked_for():
    found = by_task([accuracy("rte"), accuracy("boolq")])
    assert list(found) == ["rte", "boolq"]


def test_what_is_read_back_is_what_was_written():
    one = accuracy(
        others={"acc_norm": Score(value=0.25, stderr=None)}, chance=0.5, source="a.jsonl", sha256="0"
    )
    assert TaskAccuracy.model_validate_json(one.model_dump_json()) == one
    change = AccuracyChange(dense=by_task([one]), compressed=by_task([one]))
    assert AccuracyChange.model_validate_json(change.model_dump_json()) == change


def test_what_does_not_apply_is_left_out():
    assert not {"chance", "source", "sha256"} & accuracy().model_dump().keys()


@pytest.mark.parametrize("wrong", [{"value": float("nan")}, {"stderr": -0.1}, {"samples": 0}, {"shots": -1}])
def test_what_no_task_can_come_to_is_refused(wrong: dict[str, float]):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        accuracy(**wrong)


def test_the_mean_counts_every_task_alike_and_takes_their_errors_as_independent():
    mean = mean_of([accuracy(value=0.2, stderr=0.3, samples=10), accuracy("rte", value=0.6, stderr=0.4)])
    assert mean.value == pytest.approx(0.4)
    assert mean.stderr == pytest.approx(0.25)  # sqrt(0.09 + 0.16) / 2
    assert mean_of([accuracy(), accuracy("rte", stderr=None)]).stderr is None
