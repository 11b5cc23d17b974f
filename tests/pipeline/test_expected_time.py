"""The time that a stage is expected to take follows from one block on one batch, and from its passes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from owl_compress.documents.measurements import StageNeeds
from owl_compress.documents.recipe import Recipe
from owl_compress.pipeline.execution import run
from owl_compress.pipeline.expected_time import passes_of, times_in_words, with_seconds
from owl_compress.pipeline.needs import needs_of_session
from owl_compress.pipeline.session import Session
from owl_compress.walk.pace import Pace

MakeRecipe = Callable[..., Recipe]
IN_BLOCKS, HEAD = 27648, 259 * 32  # weights of `model`


def test_time_grows_with_weights_and_tokens_and_never_below_what_arriving_takes() -> None:
    pace = Pace(arriving=1.0, running=0.5, n_weights=100, n_tokens=64)
    assert pace.seconds(300, 64 * 8) == 3 * 8 * 0.5
    assert pace.seconds(300, 64) == 3 * 1.0


@pytest.mark.parametrize(
    ("backend", "options", "times"),
    [
        ("wanda", {"sparsity": 0.5, "statistics": "sequential"}, 2),
        ("wanda", {"sparsity": 0.5, "scope": "model"}, 3),
        ("wanda", {"sparsity": 0.5, "scope": "model", "measure_samples": 4}, 2),
        ("wanda", {"sparsity": 0.5, "statistics": "dense", "measure_samples": 4}, None),
        ("wanda", {"sparsity": 0.5, "statistics": "dense", "measure_samples": 2}, 1),
        ("wanda", {"sparsity": 0.5, "statistics": "true-sequential"}, 1),
        ("wanda", {"sparsity": 0.5, "statistics": "true-sequential", "activations": "disk"}, 3),
        ("gptq", {"bits": 3, "bit_choices": "3", "group_size": 8}, 1),
        ("magnitude", {"sparsity": 0.5}, None),
        ("structured", {"prune_ratio": 0.3, "round_to": 8, "measure_samples": 2}, 3),
    ],
)
def test_passes_are_those_of_the_walk(
    here: Path, recipe: MakeRecipe, backend: str, options: dict[str, Any], times: int | None
) -> None:
    passes = passes_of(Session.open(recipe(backend, **{"measure_samples": 2, **options})))
    assert passes["measuring"].times == 1
    assert (passes["compressing"].times if "compressing" in passes else None) == times


def test_seconds_are_those_of_the_passes(
    here: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe("wanda", sparsity=0.7, data="other.txt", measure_samples=4)
    session = Session.open(asked)
    held_out = session.held_out
    assert held_out is not None
    pace = Pace(arriving=0.0, running=1.0, n_weights=IN_BLOCKS, n_tokens=32)
    monkeypatch.setattr("owl_compress.pipeline.expected_time.pace_of", lambda *_: pace)
    found = {one.stage: one.seconds for one in with_seconds(session, needs_of_session(session), always=True)}
    assert found["measuring"] == 4
    assert found["compressing"] == 8
    assert found["evaluating"] == pytest.approx(2 * len(held_out) * (1 + HEAD / IN_BLOCKS))
    assert found["writing"] is None


def test_a_probe_of_the_model_gives_a_time_and_leaves_no_trace(here: Path, recipe: MakeRecipe) -> None:
    session = Session.open(recipe("wanda", sparsity=0.7, offload="disk"))
    needs = needs_of_session(session)
    found = with_seconds(session, needs, always=True)
    assert all(one.seconds and one.seconds > 0 for one in found if one.stage != "writing")
    assert [one.model_copy(update={"seconds": None}) for one in found] == list(needs)
    assert all(one.is_meta for site in session.structure.blocks for one in site.module.parameters())


def test_what_is_over_soon_is_not_probed(
    here: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Pace:
        raise AssertionError

    monkeypatch.setattr("owl_compress.pipeline.expected_time.pace_of", refuse)
    assert run(recipe("wanda", sparsity=0.5), "out").result


def test_times_are_told_with_what_they_leave_out() -> None:
    stages = [
        StageNeeds(stage=name, host_bytes=1, device_bytes=0, disk_bytes=0, seconds=seconds)
        for name, seconds in (("measuring", 600.0), ("writing", None))
    ]
    told = times_in_words(stages, "sparsegpt")
    assert told == "expected time, roughly: measuring 10 min; what sparsegpt itself computes comes on top"
    assert times_in_words(stages[1:], "sparsegpt") is None
    tried = times_in_words(stages, "sparsegpt", tries_plans=True)
    assert tried == f"{told}, and so do the damage of parts and two plans that are tried out"
