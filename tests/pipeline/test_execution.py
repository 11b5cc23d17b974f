"""A run from Python: what it does once, what it writes, and that the recipe beside it does it again."""

from collections.abc import Callable
from math import floor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from owl_compress.backends.rtn import Rtn
from owl_compress.backends.wanda import Wanda
from owl_compress.device import resolve_device
from owl_compress.documents.plan import Plan
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.result import Result
from owl_compress.errors import RequestError
from owl_compress.models.structure import find_structure
from owl_compress.pipeline.execution import compress_, execute, make_plan, run
from owl_compress.pipeline.quality import evaluate
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.stages import load
from owl_compress.pipeline.windows import calibration_windows

MakeRecipe = Callable[..., Recipe]
Linears = Callable[[Path | str], dict[str, Tensor]]

DENSITY = ("wanda", {"sparsity": 0.6})
NM = ("magnitude", {"nm": "2:4", "allocator": "uniform"})
WIDTH = ("structured", {"prune_ratio": 0.4, "round_to": 8})
PACKED = ("rtn", {"bits": 3, "group_size": 16})
DENSE = ("rtn", {"bits": 3, "group_size": 16, "format": "dense"})


@pytest.mark.parametrize(
    ("backend", "kind", "options"), [("wanda", Wanda, DENSITY[1]), ("rtn", Rtn, DENSE[1])]
)
def test_everything_is_resolved_once(
    here: Path,
    recipe: MakeRecipe,
    count_calls: Callable[[Callable[..., Any]], list[Any]],
    count_made: Callable[[type], list[Any]],
    backend: str,
    kind: type,
    options: dict[str, Any],
) -> None:
    found = [count_calls(one) for one in (find_structure, resolve_device, calibration_windows, load)]
    made = count_made(kind)
    run(recipe(backend, **options, data="other.txt"), "OUT")
    assert [len(calls) for calls in found] == [1, 1, 1, 1]
    assert len(made) == 1


@pytest.mark.parametrize(
    ("backend", "options"),
    [DENSITY, NM, WIDTH, PACKED, DENSE],
    ids=["density", "nm", "width", "packed", "dense"],
)
def test_the_recipe_that_is_written_makes_the_same_bytes(
    here: Path, recipe: MakeRecipe, backend: str, options: dict[str, Any]
) -> None:
    run(recipe(backend, **options), "ONE")
    run(Recipe.read("ONE/recipe.yaml"), Path("TWO"))
    names = {path.name for path in Path("ONE").iterdir()}
    assert names == {path.name for path in Path("TWO").iterdir()}
    assert {"model.safetensors", "config.json", "plan.json", "recipe.yaml"} <= names
    for name in names - {"result.json"}:  # which holds durations
        assert Path("ONE", name).read_bytes() == Path("TWO", name).read_bytes(), name


def test_densities_are_those_of_the_plan(here: Path, recipe: MakeRecipe, saved_linears: Linears) -> None:
    backend, options = DENSITY
    plan = run(recipe(backend, **options), "OUT").plan
    assert plan == Plan.read("OUT/plan.json")
    after = saved_linears("OUT")
    assert {name: int(tensor.count_nonzero()) for name, tensor in after.items()} == {
        budget.name: floor(budget.value * budget.n_weights) for budget in plan.budgets
    }
    n_weights = sum(tensor.numel() for tensor in after.values())
    assert sum(int(tensor.count_nonzero()) for tensor in after.values()) <= 0.4 * n_weights


def test_of_every_four_the_two_largest_stay(here: Path, recipe: MakeRecipe, saved_linears: Linears) -> None:
    backend, options = NM
    run(recipe(backend, **options), "OUT")
    before, after = saved_linears("model"), saved_linears("OUT")
    for name, tensor in after.items():
        groups = before[name].reshape(-1, 4)
        kept = torch.zeros_like(groups).scatter(1, groups.abs().topk(2).indices, value=1.0)
        assert torch.equal(tensor.reshape(-1, 4), groups * kept), name


def test_widths_are_whole_and_what_is_saved_counts(
    here: Path, recipe: MakeRecipe, saved_linears: Linears
) -> None:
    backend, options = WIDTH
    result = run(recipe(backend, **options), "OUT").result
    before, after = saved_linears("model"), saved_linears("OUT")
    assert all(after[f"model.layers.{n}.mlp.up_proj"].shape[0] % 8 == 0 for n in range(3))
    kept = sum(tensor.numel() for tensor in after.values())
    assert kept <= 0.6 * sum(tensor.numel() for tensor in before.values())
    n_params = sum(tensor.numel() for tensor in load_file("OUT/model.safetensors").values())
    assert result.totals.n_params_after == n_params
    assert result.footprint is not None
    assert result.footprint.after.n_params == n_params


def test_bits_are_those_of_the_plan_packed_or_not(
    here: Path, recipe: MakeRecipe, saved_linears: Linears
) -> None:
    backend, options = PACKED
    plan = run(recipe(backend, **options), "PACKED").plan
    run(recipe(backend, **options, format="dense"), "DENSE")
    packed, dense, original = (
        load_file("PACKED/model.safetensors"),
        saved_linears("DENSE"),
        saved_linears("model"),
    )
    assert len({budget.value for budget in plan.budgets}) > 1
    for budget in plan.budgets:
        rows, columns = original[budget.name].shape
        words = packed[f"{budget.name}.weight_packed"]
        assert words.dtype == torch.int32
        assert list(words.shape) == [rows, -(-columns * round(budget.value) // 32)]
        assert list(packed[f"{budget.name}.weight_scale"].shape) == [rows, columns // 16]
        assert f"{budget.name}.weight" not in packed
        groups = dense[budget.name].reshape(-1, 16)
        n_values = 1 + groups.sort(dim=1).values.diff(dim=1).count_nonzero(dim=1)
        assert int(n_values.max()) <= 2**budget.value
    assert all(
        torch.equal(load("PACKED").model.get_parameter(f"{name}.weight"), dense[name]) for name in dense
    )


@pytest.mark.parametrize(("free", "importance"), [(2**40, "taylor"), (2**10, "wanda")])
def test_the_recipe_says_what_importance_auto_became(
    here: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, free: int, importance: str
) -> None:
    monkeypatch.setattr("owl_compress.compression.gradient_memory.free_host_bytes", lambda: free)
    gradients = {"gradient_samples": 2, "taylor_variant": "vector"}
    run(recipe("structured", **WIDTH[1], importance="auto", **gradients), "AUTO")
    written = Recipe.read("AUTO/recipe.yaml")
    taken = gradients if importance == "taylor" else {}
    assert written.options == {"round_to": 8, "importance": importance, **taken}
    monkeypatch.setattr("owl_compress.compression.gradient_memory.free_host_bytes", lambda: 2**50 - free)
    run(written, "AGAIN")
    first, second = (Path(out, "model.safetensors").read_bytes() for out in ("AUTO", "AGAIN"))
    assert first == second


def test_what_was_left_open_is_written_as_it_was_done(here: Path, recipe: MakeRecipe) -> None:
    run(recipe("rtn", bits=3, group_size="none", seq_len=None, samples=2), "OUT")
    written = Recipe.read("OUT/recipe.yaml")
    assert (written.seq_len, written.bos, written.measure_samples) == (128, "first", 16)
    assert (written.format_, written.options) == ("packed", {"group_size": "none"})


def test_a_plan_is_carried_out_and_is_beside_the_recipe(
    here: Path, recipe: MakeRecipe, saved_linears: Linears
) -> None:
    plan = run(recipe("wanda", sparsity=0.6), None).plan
    first = plan.budgets[0]
    fewer = first.model_copy(update={"value": 0.25})
    plan = plan.model_copy(update={"budgets": (fewer, *plan.budgets[1:]), "low": 0.0})
    plan.write("mine.json")
    outcome = run(recipe("wanda", plan="mine.json"), "ONE")
    assert outcome.report is None
    assert not Path("ONE/report.json").exists()
    assert int(saved_linears("ONE")[first.name].count_nonzero()) == first.n_weights // 4
    assert Plan.read("ONE/plan.json") == Plan.read("mine.json")
    assert "plan: plan.json" in Path("ONE/recipe.yaml").read_text()
    assert Recipe.read("ONE/recipe.yaml").plan == "ONE/plan.json"
    run(Recipe.read("ONE/recipe.yaml"), "TWO")
    assert Path("ONE/model.safetensors").read_bytes() == Path("TWO/model.safetensors").read_bytes()


def test_a_plan_of_another_model_is_refused(here: Path, recipe: MakeRecipe) -> None:
    plan = run(recipe("wanda", sparsity=0.6), None).plan
    plan.model_copy(update={"budgets": plan.budgets[1:]}).write("less.json")
    session = Session.open(recipe("wanda", plan="less.json"))
    with pytest.raises(RequestError, match=r"plan has no budget for linear 'model\.layers\.0\.self_attn"):
        make_plan(session)


def test_without_a_folder_nothing_is_written_and_the_model_is_compressed(
    here: Path, recipe: MakeRecipe, listing: Callable[[Path], dict[str, str]]
) -> None:
    before, loaded = listing(here), load("model")
    result = run(recipe("wanda", sparsity=0.6), None, loaded).result
    assert listing(here) == before
    weights = [linear.weight for linear in find_structure(loaded.model).linears]
    kept = sum(int(weight.count_nonzero()) for weight in weights)
    assert result.totals.achieved == pytest.approx(kept / sum(weight.numel() for weight in weights))
    assert result.totals.bytes_on_disk is None


def test_strict_refuses_a_fallback_and_leaves_nothing(
    here: Path, recipe: MakeRecipe, listing: Callable[[Path], dict[str, str]]
) -> None:
    before = listing(here)
    # 128 tokens with linears of 64 inputs whose Gram matrix is singular: no damping is too little
    options = {"sparsity": 0.6, "damping": 0}
    with pytest.raises(RequestError, match=r"^--strict: damping raised to .* at model\.layers\."):
        run(recipe("sparsegpt", **options, strict=True), "OUT")
    assert listing(here) == before
    assert run(recipe("sparsegpt", **options), None).result.fallbacks


def test_a_folder_that_holds_something_is_refused_before_the_model_is_loaded(
    here: Path, recipe: MakeRecipe
) -> None:
    Path("OUT").mkdir()
    Path("OUT/mine.txt").write_text("keep")
    with pytest.raises(RequestError, match="output folder OUT exists and is not empty"):
        run(recipe("wanda", model="./nowhere", sparsity=0.6), "OUT")
    assert [path.name for path in Path("OUT").iterdir()] == ["mine.txt"]


def test_the_same_text_is_evaluated_before_and_after(here: Path, recipe: MakeRecipe) -> None:
    result = run(recipe("wanda", sparsity=0.6, data="other.txt"), "OUT").result
    assert result.evaluation == Result.read("OUT/result.json").evaluation
    assert result.evaluation is not None
    options = {"sparsity": 0.6, "data": "other.txt"}
    dense, compressed = (
        evaluate(Session.open(recipe("wanda", model=model, **options))) for model in ("model", "OUT")
    )
    assert result.evaluation.dense == dense
    assert result.evaluation.compressed == compressed
    assert dense.perplexity != compressed.perplexity


def test_a_budget_that_cannot_be_met_is_refused_before_importance_is_measured(
    here: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = "owl_compress.pipeline.reports.measure_with_statistics"
    monkeypatch.setattr(measure, lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(RequestError, match="--allow-empty"):
        make_plan(Session.open(recipe("structured", prune_ratio=0.95, round_to=8)))


def test_what_cannot_be_stored_is_refused_before_importance_is_measured(
    here: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = "owl_compress.pipeline.reports.measure_with_statistics"
    monkeypatch.setattr(measure, lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(RequestError, match="asymmetric codes cannot be packed"):
        run(recipe("rtn", bits=3, group_size=16, asymmetric=True), "OUT")
    assert not Path("OUT").exists()


def test_the_stages_of_a_run_one_by_one_make_its_checkpoint(
    here: Path, recipe: MakeRecipe, saved_linears: Linears
) -> None:
    outcome = run(recipe("wanda", sparsity=0.6), "OUT")
    session = Session.open(recipe("wanda", sparsity=0.6))
    report, plan = make_plan(session)
    result = compress_(session, plan)
    assert (report, plan) == (outcome.report, outcome.plan)
    assert result.budgets[0].achieved == outcome.result.budgets[0].achieved
    for name, tensor in saved_linears("OUT").items():
        assert torch.equal(session.loaded.model.get_parameter(f"{name}.weight"), tensor)


def test_structure_of_a_class_of_its_own_is_refused_before_any_work(
    here: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session.open(recipe("structured", prune_ratio=0.25))
    model = session.loaded.model
    model.__class__ = type("HomeMade", (type(model),), {"__module__": "home"})
    monkeypatch.setattr("owl_compress.pipeline.execution.make_plan", None)
    with pytest.raises(RequestError, match="HomeMade is not a class of transformers"):
        execute(session, here / "OUT")
