"""What is told before anything is compressed: budgets that cannot be met, sizes, and what memory decides."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from owl_compress.documents.recipe import Recipe
from owl_compress.errors import RequestError
from owl_compress.pipeline.execution import make_plan, run
from owl_compress.pipeline.feasibility import check_plan, check_request, forecast
from owl_compress.pipeline.session import Session

MakeRecipe = Callable[..., Recipe]
WIDTH = {"prune_ratio": 0.4, "round_to": 8}


def tensor_bytes(folder: str) -> int:
    """Bytes of the tensors alone: the file without the header, whose length its first eight bytes say."""
    content = Path(folder, "model.safetensors").read_bytes()
    header = int.from_bytes(content[:8], "little")
    assert "model.embed_tokens.weight" in json.loads(content[8 : 8 + header])
    return len(content) - 8 - header


@pytest.mark.parametrize("allocator", ["owl", "uniform"])
def test_the_forecast_of_a_density_is_what_is_saved(here: Path, recipe: MakeRecipe, allocator: str) -> None:
    asked = recipe("wanda", sparsity=0.6, allocator=allocator)
    session = Session.open(asked)
    _, plan = make_plan(session)
    found = forecast(session, plan)
    run(asked, "OUT")
    assert found.prediction.checkpoint_bytes == tensor_bytes("OUT")
    assert found.notes == ()


def test_the_forecast_counts_the_weights_that_stay(
    here: Path, recipe: MakeRecipe, saved_linears: Callable[..., Any]
) -> None:
    asked = recipe("wanda", sparsity=0.6)
    session = Session.open(asked)
    _, plan = make_plan(session)
    found = forecast(session, plan)
    run(asked, "OUT")
    kept = sum(int(tensor.count_nonzero()) for tensor in saved_linears("OUT").values())
    assert found.prediction.n_weights_kept == kept


@pytest.mark.parametrize("bits", [2, 3, 3.5])
def test_the_forecast_of_codes_is_within_a_hundredth(here: Path, recipe: MakeRecipe, bits: float) -> None:
    asked = recipe("rtn", bits=bits, group_size=16)
    session = Session.open(asked)
    _, plan = make_plan(session)
    packed = forecast(session, plan).prediction.checkpoint_bytes
    unpacked = recipe("rtn", bits=bits, group_size=16, format="dense")
    dense = forecast(Session.open(unpacked), plan).prediction.checkpoint_bytes
    run(asked, "PACKED")
    run(unpacked, "DENSE")
    assert packed == pytest.approx(tensor_bytes("PACKED"), rel=0.01)
    assert dense == tensor_bytes("DENSE")
    assert packed < dense


def test_widths_leave_no_more_than_was_foretold(here: Path, recipe: MakeRecipe) -> None:
    asked = recipe("structured", **WIDTH)
    session = Session.open(asked)
    _, plan = make_plan(session)
    foretold = forecast(session, plan).prediction.checkpoint_bytes
    run(asked, "OUT")
    assert 0.9 * foretold < tensor_bytes("OUT") <= foretold < tensor_bytes("model")


@pytest.mark.parametrize(("free", "importance"), [(2**40, "taylor"), (2**10, "wanda")])
def test_the_forecast_says_what_memory_decides(
    here: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, free: int, importance: str
) -> None:
    monkeypatch.setattr("owl_compress.compression.gradient_memory.free_host_bytes", lambda: free)
    session = Session.open(recipe("structured", **WIDTH, importance="auto"))
    _, plan = make_plan(session)
    found = forecast(session, plan)
    named = Session.open(recipe("structured", **WIDTH, importance=importance), session.loaded)
    (note,) = found.notes
    assert note.startswith(f"importance auto ran as {importance}: gradients need ")
    assert found.prediction == forecast(named, plan).prediction
    assert run(recipe("structured", **WIDTH, importance="auto"), None).result.notes == (note,)


def test_a_forecast_leaves_the_model_as_it_is(
    here: Path, recipe: MakeRecipe, state_bytes: Callable[..., dict[str, str]]
) -> None:
    session = Session.open(recipe("structured", **WIDTH))
    before = state_bytes(session.loaded.model)
    check_request(session)
    _, plan = make_plan(session)
    check_plan(session, plan)
    forecast(session, plan)
    assert state_bytes(session.loaded.model) == before


def test_a_forecast_for_a_plan_of_another_model_is_refused(here: Path, recipe: MakeRecipe) -> None:
    session = Session.open(recipe("wanda", sparsity=0.6))
    _, plan = make_plan(session)
    smaller = plan.budgets[0].model_copy(update={"n_weights": 7})
    with pytest.raises(RequestError, match="the plan was made for another model"):
        forecast(session, plan.model_copy(update={"budgets": (smaller, *plan.budgets[1:])}))


def test_a_budget_that_no_allocator_could_meet_is_refused(here: Path, recipe: MakeRecipe) -> None:
    impossible = {"prune_ratio": 0.95, "round_to": 8}
    with pytest.raises(RequestError, match="--allow-empty"):
        check_request(Session.open(recipe("structured", **impossible)))
    check_request(Session.open(recipe("structured", **impossible, allow_empty=True)))


def test_a_plan_that_the_backend_cannot_carry_out_is_refused(here: Path, recipe: MakeRecipe) -> None:
    session = Session.open(recipe("structured", allocator="uniform", **WIDTH))
    _, plan = make_plan(session)
    check_plan(session, plan)
    without = plan.model_copy(update={"budgets": plan.budgets[1:], "skipped": (plan.budgets[0].name,)})
    with pytest.raises(RequestError, match="skip all of its linears or none"):
        check_plan(session, without)


def test_a_backend_that_checks_nothing_takes_every_plan(here: Path, recipe: MakeRecipe) -> None:
    session = Session.open(recipe("wanda", allocator="uniform", sparsity=0.99))
    check_request(session)
    _, plan = make_plan(session)
    check_plan(session, plan)


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("wanda", {"sparsity": 0.5, "skip": "nothing"}, "--skip 'nothing' matches no block or linear"),
        ("wanda", {"sparsity": 0.5, "set": "nothing=0.5"}, "--set 'nothing' matches no block or linear"),
        (
            "rtn",
            {"bits": 3, "group_size": 48},
            r"groups of 48 do not divide \(20 more linears are like it\): .*--group-size such as 16,",
        ),
        (
            "gptq",
            {"bits": 3, "group_size": 48},
            r"groups of 48 do not divide \(20 more linears are like it\): .*--group-size such as 16,",
        ),
    ],
)
def test_what_fits_no_linear_is_told_before_anything_is_measured(
    here: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch,
    backend: str, options: dict[str, Any], message: str,
) -> None:  # fmt: skip
    measure = "owl_compress.pipeline.reports.measure_with_statistics"
    monkeypatch.setattr(measure, lambda *_, **__: pytest.fail("measured"))
    session = Session.open(recipe(backend, **options))
    with pytest.raises(RequestError, match=message):
        make_plan(session)


def test_groups_need_not_divide_what_is_skipped(here: Path, recipe: MakeRecipe) -> None:
    """Only the down projection has 64 inputs, the others 32."""
    others = ["*q_proj", "*k_proj", "*v_proj", "*o_proj", "*gate*", "*up*"]
    session = Session.open(recipe("rtn", allocator="uniform", bits=3, group_size=64, skip=others))
    check_request(session)
