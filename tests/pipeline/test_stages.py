"""The stages one by one, as a user of Python calls them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import owl_compress
from owl_compress.backends.gptqmodel import GptqModel
from owl_compress.backends.rtn import Rtn
from owl_compress.backends.wanda import Wanda
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.recipe import Recipe
from owl_compress.errors import RequestError
from owl_compress.models.structure import find_structure
from owl_compress.pipeline.execution import make_plan, run
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.stages import (
    allocate,
    compress_,
    evaluate,
    identity_of,
    load,
    verify,
)
from owl_compress.pipeline.windows import (
    calibrate,
    hold_out,
)

MakeRecipe = Callable[..., Recipe]


def test_a_model_is_loaded_as_asked(here: Path) -> None:
    assert load("model").model.dtype == torch.float32
    loaded = load("model", dtype="bfloat16", device=torch.device("cpu"))
    assert (loaded.model.dtype, loaded.dtype, loaded.source) == (torch.bfloat16, "bfloat16", "model")
    with pytest.raises(RequestError, match="unknown dtype 'int3'"):
        load("model", dtype="int3")


def test_a_broken_weight_is_refused_and_named(here: Path) -> None:
    loaded = load("model")
    with torch.no_grad():
        loaded.model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    loaded.model.save_pretrained("BROKEN")
    loaded.tokenizer.save_pretrained("BROKEN")
    with pytest.raises(RequestError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or Inf"):
        load("BROKEN")


def test_running_out_of_memory_names_the_loading(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("owl_compress.pipeline.stages.load_model", full)
    with pytest.raises(RequestError, match=r"^out of memory while loading model: use --offload disk"):
        owl_compress.load("model")


def test_a_model_is_identified_by_what_the_user_named(here: Path) -> None:
    loaded = load("model")
    identity = identity_of(loaded)
    assert (identity.id, identity.revision, identity.family) == ("model", None, "llama")
    assert identity == identity_of(loaded, find_structure(loaded.model))
    assert identity_of(replace(loaded, revision="abc123")).revision == "abc123"


def test_windows_are_cut_as_a_run_cuts_them(here: Path, recipe: MakeRecipe) -> None:
    session = Session.open(recipe("wanda", sparsity=0.5, data="other.txt"))
    options = {"samples": 4, "seq_len": 32}
    windows = calibrate(session.loaded, "text.txt", **options)
    assert session.calibration is not None
    assert torch.equal(windows.ids, session.calibration.ids)
    assert windows.record == session.calibration.record
    assert not torch.equal(calibrate(session.loaded, "text.txt", **options, seed=1).ids, windows.ids)
    held_out = hold_out(session.loaded, "other.txt", seq_len=32)
    assert torch.equal(held_out.ids, session.held_out_windows.ids)


def test_windows_are_as_long_as_the_model_reaches_unless_told_otherwise(here: Path) -> None:
    loaded = load("model")
    assert calibrate(loaded, "text.txt", samples=2).record.seq_len == 128
    assert hold_out(loaded, "text.txt", max_windows=2).ids.shape == (2, 128)
    with pytest.raises(RequestError, match=r"other\.txt is too short"):
        calibrate(loaded, "other.txt", samples=40)


def test_evaluation_follows_its_options(here: Path) -> None:
    loaded = load("model")
    whole = evaluate(loaded, "other.txt", seq_len=32)
    assert (whole.windows, whole.data) == (25, "other.txt")
    assert evaluate(loaded, "other.txt", seq_len=32, max_windows=3).windows == 3
    batched = evaluate(loaded, "other.txt", seq_len=32, batch_size=4, device=torch.device("cpu"))
    assert batched.perplexity == pytest.approx(whole.perplexity)


def test_a_target_may_be_given_whole_or_by_its_options(here: Path, recipe: MakeRecipe) -> None:
    session = Session.open(recipe("wanda", sparsity=0.6, lam=0.05, low=0.3))
    report, plan = make_plan(session)
    assert report is not None
    assert allocate(report, sparsity=0.6, lam=0.05, low=0.3) == plan
    assert allocate(report, target=session.request.target, lam=0.05) == plan
    assert session.request.allocator is not None
    assert allocate(report, session.request.allocator, target=session.request.target) == plan


@pytest.mark.parametrize(
    ("backend", "options"),
    [("wanda", {"scope": "linear"}), (Wanda("linear"), {})],  # type: ignore[arg-type]
    ids=["name", "method"],
)
def test_a_backend_is_named_or_given(
    here: Path, recipe: MakeRecipe, saved_linears: Any, backend: Any, options: dict[str, Any]
) -> None:
    plan = run(recipe("wanda", sparsity=0.6, scope="linear"), "OUT").plan
    loaded = load("model")
    windows = calibrate(loaded, "text.txt", samples=4, seq_len=32)
    result = compress_(loaded.model, plan, backend, windows, **options)
    assert result.backend.parameters == {"scope": "linear"}
    for name, tensor in saved_linears("OUT").items():
        assert torch.equal(loaded.model.get_parameter(f"{name}.weight"), tensor)


def test_options_are_for_a_backend_that_is_named(here: Path, recipe: MakeRecipe) -> None:
    loaded = load("model")
    _, plan = make_plan(Session.open(recipe("rtn", allocator="uniform", bits=3, group_size=16), loaded))
    with pytest.raises(RequestError, match=r"options \['group_size'\] are for a backend given by name"):
        compress_(loaded.model, plan, Rtn(), group_size=16)
    with pytest.raises(RequestError, match="backend 'rtn' takes no group-sise"):
        compress_(loaded.model, plan, "rtn", group_sise=16)


@pytest.mark.parametrize("backend", ["gptqmodel", GptqModel(group_size=32)], ids=["name", "method"])
def test_a_backend_that_writes_a_checkpoint_is_for_a_run(
    here: Path,
    recipe: MakeRecipe,
    state_bytes: Callable[..., dict[str, str]],
    make_windows: Callable[..., TokenWindows],
    backend: Any,
) -> None:
    loaded = load("model")
    _, plan = make_plan(Session.open(recipe("rtn", allocator="uniform", bits=3, group_size=16), loaded))
    before = state_bytes(loaded.model)
    with pytest.raises(RequestError, match=r"'gptqmodel' writes a checkpoint .* use owl_compress\.run\("):
        compress_(loaded.model, plan, backend, make_windows())
    assert state_bytes(loaded.model) == before


def test_a_folder_is_verified_by_its_tensors(here: Path, recipe: MakeRecipe) -> None:
    run(recipe("magnitude", nm="2:4", allocator="uniform"), "OUT")
    assert verify("OUT").ok
    found = verify(Path("OUT"), "2:4")
    assert (found.ok, found.linears, found.groups) == (True, 21, 27_648 // 4)
    assert not verify("OUT", "1:4").ok


def test_the_lines_of_the_package_run(here: Path) -> None:
    loaded = owl_compress.load("model")
    calibration = owl_compress.calibrate(loaded, "text.txt", samples=4, seq_len=32)
    report = owl_compress.measure(loaded.model, calibration)
    plan = owl_compress.allocate(report, "owl", sparsity=0.6)
    result = owl_compress.compress_(loaded.model, plan, "wanda", calibration)
    owl_compress.save(loaded, result, plan, "OUT")
    assert owl_compress.verify("OUT").ok
    assert owl_compress.evaluate(owl_compress.load("OUT"), "other.txt", seq_len=32).windows == 25
