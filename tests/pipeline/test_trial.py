"""Trying out: on a copy, with what was measured before or not, and the same again as a run would do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from owl_compress.documents.recipe import Recipe
from owl_compress.errors import RequestError
from owl_compress.evaluation.perplexity import perplexity
from owl_compress.importance.estimator import measure_with_statistics
from owl_compress.models.structure import find_structure
from owl_compress.pipeline.execution import make_plan, run
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.stages import load
from owl_compress.pipeline.trial import try_out
from owl_compress.pipeline.windows import hold_out

MakeRecipe = Callable[..., Recipe]
StateBytes = Callable[..., dict[str, str]]
CountCalls = Callable[[Callable[..., Any]], list[Any]]

CASES = pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("wanda", {"sparsity": 0.6}),
        ("structured", {"prune_ratio": 0.4, "round_to": 8}),
        ("rtn", {"bits": 3, "group_size": 16}),
    ],
    ids=["density", "width", "bits"],
)


@CASES
def test_a_copy_is_compressed_as_a_run_would_do_it(
    here: Path, recipe: MakeRecipe, state_bytes: StateBytes, backend: str, options: dict[str, Any]
) -> None:
    session = Session.open(recipe(backend, **options))
    dense, windows = state_bytes(session.loaded.model), hold_out(session.loaded, "other.txt", seq_len=32)
    trial = try_out(session, windows)
    loaded = load("model")
    outcome = run(recipe(backend, **options, data="other.txt"), None, loaded)
    assert state_bytes(session.loaded.model) == dense
    assert state_bytes(trial.session.loaded.model) == state_bytes(loaded.model) != dense
    assert (trial.report, trial.plan) == (outcome.report, outcome.plan)
    assert [row.achieved for row in trial.result.budgets] == [row.achieved for row in outcome.result.budgets]
    assert outcome.result.evaluation is not None
    assert trial.perplexity == outcome.result.evaluation.compressed
    assert trial.seconds > 0


@CASES
def test_with_a_report_nothing_is_measured_again(
    here: Path, recipe: MakeRecipe, count_calls: CountCalls, backend: str, options: dict[str, Any]
) -> None:
    session = Session.open(recipe(backend, **options))
    windows = hold_out(session.loaded, "other.txt", seq_len=32)
    without = try_out(session, windows)
    calls = count_calls(measure_with_statistics)
    again = try_out(session, windows, without.report)
    assert calls == []
    assert again.report is without.report
    assert (again.plan, again.perplexity) == (without.plan, without.perplexity)


def test_shapes_change_in_the_copy_alone(here: Path, recipe: MakeRecipe) -> None:
    session = Session.open(recipe("structured", prune_ratio=0.4, round_to=8))
    windows = hold_out(session.loaded, "other.txt", seq_len=32)
    before = find_structure(load("model").model).linear_sizes
    for report in (None, make_plan(session)[0]):
        trial = try_out(session, windows, report)
        after = find_structure(trial.session.loaded.model).linear_sizes
        assert sum(after.values()) <= 0.6 * sum(before.values())
        assert trial.perplexity.n_params == trial.result.totals.n_params_after
        assert find_structure(session.loaded.model).linear_sizes == before
    dense = perplexity(session.loaded.model, windows)
    assert dense == perplexity(load("model").model, windows)


def test_many_ways_are_tried_on_one_dense_model(here: Path, recipe: MakeRecipe) -> None:
    loaded = load("model")
    windows = hold_out(loaded, "other.txt", seq_len=32)
    first = Session.open(recipe("wanda", sparsity=0.3), loaded)
    report, _ = make_plan(first)
    found: dict[float, list[float]] = {}
    for sparsity in (0.3, 0.9, 0.3):
        session = Session.open(recipe("wanda", sparsity=sparsity), loaded, first.calibration)
        trial = try_out(session, windows, report)
        kept = sum(int(one.weight.count_nonzero()) for one in trial.session.structure.linears)
        assert trial.result.totals.achieved == pytest.approx(kept / 27_648)
        found.setdefault(sparsity, []).append(trial.perplexity.perplexity)
    assert found[0.3][0] == found[0.3][1] != found[0.9][0]


def test_a_plan_is_tried_out_as_it_is(here: Path, recipe: MakeRecipe, count_calls: CountCalls) -> None:
    _, plan = make_plan(Session.open(recipe("wanda", sparsity=0.6)))
    plan.write("plan.json")
    session = Session.open(recipe("wanda", plan="plan.json"))
    calls = count_calls(measure_with_statistics)
    trial = try_out(session, hold_out(session.loaded, "other.txt", seq_len=32))
    assert calls == []
    assert (trial.report, trial.plan) == (None, plan)


def test_an_allocator_that_reads_no_scores_needs_no_report(here: Path, recipe: MakeRecipe) -> None:
    session = Session.open(recipe("magnitude", allocator="uniform", sparsity=0.5))
    trial = try_out(session, hold_out(session.loaded, "other.txt", seq_len=32))
    assert trial.report is None
    assert {budget.value for budget in trial.plan.budgets} == {0.5}


def test_nothing_is_written(
    here: Path, recipe: MakeRecipe, listing: Callable[[Path], dict[str, str]]
) -> None:
    before = listing(here)
    session = Session.open(recipe("wanda", sparsity=0.5))
    try_out(session, hold_out(session.loaded, "other.txt", seq_len=32))
    assert listing(here) == before


def test_what_strict_refuses_leaves_the_dense_model_alone(
    here: Path, recipe: MakeRecipe, state_bytes: StateBytes
) -> None:
    session = Session.open(recipe("sparsegpt", sparsity=0.6, damping=0, strict=True))
    dense = state_bytes(session.loaded.model)
    with pytest.raises(RequestError, match="--strict: damping raised"):
        try_out(session, hold_out(session.loaded, "other.txt", seq_len=32))
    assert state_bytes(session.loaded.model) == dense


def test_the_model_of_a_trial_is_an_ordinary_one(here: Path, recipe: MakeRecipe) -> None:
    session = Session.open(recipe("structured", prune_ratio=0.4, round_to=8))
    trial = try_out(session, hold_out(session.loaded, "other.txt", seq_len=32))
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        logits = trial.session.loaded.model(input_ids=ids).logits
    assert list(logits.shape) == [1, 37, 259]
    assert torch.isfinite(logits).all()
