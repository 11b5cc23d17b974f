"""A session finds everything once: model, blocks, windows; and a copy leaves it as it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from owl_compress.consent import Consent
from owl_compress.data.windows import TokenWindows
from owl_compress.device import resolve_device
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.recipe_fields import DEFAULT_MEASURE_SAMPLES
from owl_compress.errors import RequestError
from owl_compress.models.structure import find_structure
from owl_compress.pipeline.execution import compress_, make_plan, run
from owl_compress.pipeline.request import Request
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.stages import load
from owl_compress.pipeline.windows import calibration_windows

MakeRecipe = Callable[..., Recipe]
CountCalls = Callable[[Callable[..., Any]], list[Any]]


def test_a_recipe_becomes_a_session_with_its_model_blocks_and_windows(here: Path, recipe: MakeRecipe) -> None:
    session = Session.open(recipe("wanda", sparsity=0.5))
    assert session.recipe == recipe("wanda", sparsity=0.5)
    assert [block.name for block in session.structure.blocks] == [f"model.layers.{n}" for n in range(3)]
    assert session.structure.blocks[0].module is session.loaded.model.model.layers[0]
    assert (session.identity.id, session.identity.revision) == ("model", None)
    assert (session.identity.family, session.identity.dtype) == ("llama", "float32")
    assert session.calibration is not None
    assert list(session.calibration.ids.shape) == [4, 32]
    assert session.calibration.record.source == "text.txt"


def test_a_request_is_not_resolved_again(here: Path, recipe: MakeRecipe, count_calls: CountCalls) -> None:
    request = Request.of(recipe("wanda", sparsity=0.5))
    calls = count_calls(resolve_device)
    assert Session.open(request).request is request
    assert calls == []


def test_a_loaded_model_is_taken(here: Path, recipe: MakeRecipe, count_calls: CountCalls) -> None:
    loaded = load("model")
    calls = count_calls(load)
    session = Session.open(recipe("wanda", model="nowhere", sparsity=0.5), loaded)
    assert session.loaded is loaded
    assert session.identity.id == "model"
    assert calls == []


def test_windows_that_are_there_are_taken_and_no_text_is_read(
    here: Path,
    recipe: MakeRecipe,
    make_windows: Callable[..., TokenWindows],
    count_calls: CountCalls,
) -> None:
    windows, calls = make_windows(sequences=3, seq_len=24), count_calls(calibration_windows)
    session = Session.open(recipe("wanda", calib="nowhere.txt", sparsity=0.5), calibration=windows)
    report, plan = make_plan(session)
    result = compress_(session, plan)
    assert session.calibration is windows
    assert calls == []
    assert report is not None
    assert report.provenance.calibration == windows.record == result.calibration


@pytest.mark.parametrize(
    ("backend", "options", "looks"),
    [
        ("magnitude", {"allocator": "uniform", "sparsity": 0.5}, False),
        ("rtn", {"allocator": "uniform", "bits": 3, "group_size": 16}, False),
        ("magnitude", {"sparsity": 0.5}, True),
        ("wanda", {"allocator": "uniform", "sparsity": 0.5}, True),
    ],
)
def test_a_text_is_read_only_where_somebody_looks_at_it(
    here: Path, recipe: MakeRecipe, backend: str, options: dict[str, Any], looks: bool
) -> None:
    assert (Session.open(recipe(backend, **options)).calibration is not None) == looks
    missing = recipe(backend, calib="nowhere.txt", **options)
    if looks:
        with pytest.raises(RequestError, match=r"there is no file nowhere\.txt"):
            Session.open(missing)
    else:
        assert Session.open(missing).calibration is None


def test_importance_is_measured_on_the_first_windows(
    here: Path, recipe: MakeRecipe, make_windows: Callable[..., TokenWindows]
) -> None:
    loaded, windows = load("model"), make_windows(sequences=20, seq_len=8)
    by_default = Session.open(recipe("wanda", sparsity=0.7), loaded, windows)
    asked = Session.open(recipe("wanda", sparsity=0.7, measure_samples=3), loaded, windows)
    for session, n_windows in ((by_default, DEFAULT_MEASURE_SAMPLES), (asked, 3)):
        assert session.measuring is not None
        assert torch.equal(session.measuring.ids, windows.ids[:n_windows])
    unmeasured = Session.open(recipe("wanda", allocator="uniform", sparsity=0.5), loaded, windows)
    assert not unmeasured.measures
    assert unmeasured.measuring is None
    assert unmeasured.calibration is windows


def test_the_evaluation_text_is_cut_once(here: Path, recipe: MakeRecipe) -> None:
    session = Session.open(recipe("magnitude", allocator="uniform", sparsity=0.5, data="other.txt"))
    windows = session.held_out_windows
    # one BOS and 799 bytes
    assert list(windows.ids.shape) == [25, 32]
    assert session.held_out is windows
    first = session.loaded.tokenizer.decode(windows.ids[0, 1:])
    assert first == (here / "other.txt").read_text()[:31]


def test_without_an_evaluation_text_there_is_none_to_be_had(here: Path, recipe: MakeRecipe) -> None:
    session = Session.open(recipe("magnitude", allocator="uniform", sparsity=0.5))
    assert session.held_out is None
    with pytest.raises(RequestError, match="names no text to evaluate on: give --data"):
        _ = session.held_out_windows


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("wanda", {"sparsity": 0.5}),
        ("structured", {"prune_ratio": 0.4, "round_to": 8}),
        ("rtn", {"bits": 3, "group_size": 16}),
    ],
)
def test_a_copy_is_compressed_and_the_dense_model_stays(
    here: Path,
    recipe: MakeRecipe,
    state_bytes: Callable[..., dict[str, str]],
    backend: str,
    options: dict[str, Any],
) -> None:
    session = Session.open(recipe(backend, **options))
    before = state_bytes(session.loaded.model)
    copy = session.on_a_copy()
    assert state_bytes(copy.loaded.model) == before
    _, plan = make_plan(copy)
    compress_(copy, plan)
    assert state_bytes(session.loaded.model) == before
    assert state_bytes(copy.loaded.model) != before
    assert {linear.name: linear.n_weights for linear in session.structure.linears} == (
        find_structure(load("model").model).linear_sizes
    )


def test_a_copy_shares_all_but_the_model(here: Path, recipe: MakeRecipe) -> None:
    session = Session.open(recipe("wanda", sparsity=0.5))
    copy = session.on_a_copy()
    assert copy.request is session.request
    assert copy.calibration is session.calibration
    assert copy.loaded.tokenizer is session.loaded.tokenizer
    assert copy.identity == session.identity
    modules = {id(module) for module in session.loaded.model.modules()}
    assert modules.isdisjoint(id(linear.module) for linear in copy.structure.linears)


def test_the_form_follows_from_what_is_asked(here: Path, recipe: MakeRecipe) -> None:
    loaded, bits = load("model"), {"bits": 3, "group_size": 16}
    assert Session.open(recipe("wanda", sparsity=0.5), loaded).form.name == "dense"
    assert Session.open(recipe("rtn", **bits), loaded).form.name == "packed"
    assert Session.open(recipe("rtn", **bits, format="dense"), loaded).form.name == "dense"


def test_what_cannot_be_stored_is_told_before_it_is_done(here: Path, recipe: MakeRecipe) -> None:
    options = {"bits": 3, "group_size": 16, "asymmetric": True}
    session = Session.open(recipe("rtn", **options))
    with pytest.raises(RequestError, match="asymmetric codes cannot be packed"):
        session.check_storage()
    Session.open(recipe("rtn", **options, format="dense")).check_storage()


def test_a_refusal_that_changed_nothing_leaves_the_session_fresh(here: Path, recipe: MakeRecipe) -> None:
    session = Session.open(recipe("wanda", sparsity=0.5))
    _, plan = make_plan(session)
    wrong = plan.model_copy(
        update={"budgets": tuple(one.model_copy(update={"name": f"x.{one.name}"}) for one in plan.budgets)}
    )
    with pytest.raises(RequestError, match="which the model does not have"):
        compress_(session, wrong)
    compress_(session, plan)
    with pytest.raises(RequestError, match="compressed already"):
        compress_(session, plan)


def test_consent_reaches_the_model_and_no_file(here: Path, recipe: MakeRecipe) -> None:
    torch.save(load("model").model.state_dict(), here / "model" / "pytorch_model.bin")
    (here / "model" / "model.safetensors").unlink()
    asked = recipe("magnitude", allocator="uniform", sparsity=0.5)
    with pytest.raises(RequestError, match="--allow-pickle"):
        run(asked, "OUT")
    run(asked, "OUT", consent=Consent(allow_pickle=True))
    written = [here / "OUT" / name for name in ("recipe.yaml", "result.json", "plan.json", "README.md")]
    assert not any("pickle" in path.read_text(encoding="utf-8") for path in written)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calib": "txt.txt"}, "did you mean 'text.txt'"),
        ({"data": "othr.txt"}, "did you mean 'other.txt'"),
        ({"calib": "a.jsonl", "text_field": "txt"}, "did you mean 'text'"),
        ({"chat_template": True}, "text.txt holds none"),
    ],
)
def test_what_is_wrong_with_a_text_is_told_before_the_model_is_loaded(
    here: Path, recipe: MakeRecipe, count_calls: CountCalls, options: dict[str, Any], message: str
) -> None:
    (here / "a.jsonl").write_text('{"text": "one"}\n')
    calls = count_calls(load)
    with pytest.raises(RequestError, match=message):
        run(recipe("wanda", sparsity=0.5, **options), None)
    assert calls == []


def test_token_ids_beyond_the_vocabulary_are_refused_before_any_block_runs(
    here: Path, recipe: MakeRecipe, forwards_counted: Any
) -> None:
    loaded = load("model")
    loaded.tokenizer.add_tokens(["owl0001"])
    with (
        forwards_counted(loaded.model) as lengths,
        pytest.raises(RequestError, match="outside the model's vocabulary of 259"),
    ):
        run(recipe("wanda", sparsity=0.5, sampling="first"), None, loaded)
    assert not any(lengths)
