"""What is timed beside what, and what is refused before a model is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from owl_compress.consent import Consent
from owl_compress.documents.measurements import LatencyShape
from owl_compress.documents.recipe import Recipe
from owl_compress.errors import RequestError
from owl_compress.models.state import n_parameters
from owl_compress.pipeline.execution import run
from owl_compress.pipeline.stages import load
from owl_compress.pipeline.timing import TimingOptions, prepare_timing, time_model, timing_options

MakeRecipe = Callable[..., Recipe]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")  # options look at no more than the name
SHAPE = LatencyShape(prompt_len=8, new_tokens=2)
WIDTH = {"prune_ratio": 0.4, "round_to": 8, "allocator": "uniform"}


@pytest.fixture
def narrowed(here: Path, recipe: MakeRecipe) -> str:
    """A folder with `model`, 40 % of its heads and channels removed."""
    run(recipe("structured", **WIDTH), "NARROW")
    return "NARROW"


def test_a_semi_structured_kernel_needs_cuda() -> None:
    with pytest.raises(RequestError, match="'semi-structured' needs a CUDA device and this is the cpu"):
        TimingOptions(CPU, kernel="semi-structured")


def test_compiling_is_for_dense_kernels() -> None:
    with pytest.raises(RequestError, match="--compile is for dense kernels: drop it, or --kernel semi-str"):
        TimingOptions(CUDA, kernel="semi-structured", compiled=True)
    assert TimingOptions(CPU, compiled=True).compiled


def test_a_semi_structured_model_is_timed_against_itself() -> None:
    with pytest.raises(RequestError, match="times a model against itself: drop --against dense"):
        TimingOptions(CUDA, kernel="semi-structured", against="dense")


def test_a_kernel_in_words_is_one_that_exists() -> None:
    with pytest.raises(RequestError, match="unknown kernel 'fast': it is one of dense, semi-structured"):
        timing_options(CPU, SHAPE, "fast", None, compiled=False)
    with pytest.raises(RequestError, match="unknown kernel 'fast'"):
        TimingOptions(CPU, kernel="fast")  # type: ignore[arg-type]
    options = timing_options(CPU, SHAPE, "dense", "other", compiled=True)
    assert options == TimingOptions(CPU, SHAPE, "dense", "other", compiled=True)


def test_a_model_is_not_its_own_dense_model() -> None:
    with pytest.raises(RequestError, match=r"--against \./nowhere is the model itself"):
        time_model("./nowhere", TimingOptions(CPU, SHAPE, against="./nowhere"))


def test_what_breaks_the_pattern_is_refused_before_it_is_loaded(here: Path, recipe: MakeRecipe) -> None:
    options = TimingOptions(CUDA, kernel="semi-structured")
    run(recipe("magnitude", nm="2:4", allocator="uniform"), "GOOD")
    run(recipe("magnitude", nm="3:4", allocator="uniform"), "BAD")
    options.check_model("GOOD")
    with pytest.raises(RequestError, match=r"needs 2 of every 4 weights at most, and model\.layers\.0"):
        time_model("BAD", options)
    TimingOptions(CPU).check_model("BAD")


def test_a_narrowed_model_is_timed_beside_its_dense_one(narrowed: str) -> None:
    dense, small = time_model(narrowed, TimingOptions(CPU, SHAPE))
    assert (dense.name, small.name) == ("model", "NARROW")
    assert (dense.n_params, small.n_params) == tuple(
        n_parameters(load(name).model) for name in ("model", narrowed)
    )
    assert dense.speedup is None
    assert small.speedup is not None
    assert small.speedup.decode == dense.decode_seconds_per_token / small.decode_seconds_per_token
    assert small.speedup.blocks_prefill == dense.blocks.prefill_seconds / small.blocks.prefill_seconds
    for record in (dense, small):
        assert (record.shape, record.kernel, record.compiled) == (SHAPE, "dense", False)
        assert 0 < record.blocks.prefill_seconds < record.prefill_seconds
    assert small.weight_bytes < dense.weight_bytes


def test_a_model_that_was_not_made_from_another_is_timed_alone(here: Path) -> None:
    (record,) = time_model("model", TimingOptions(CPU, SHAPE))
    assert (record.name, record.speedup) == ("model", None)


def test_the_dense_model_has_the_type_of_the_other(narrowed: str) -> None:
    timing = prepare_timing(load(narrowed, dtype="bfloat16"), TimingOptions(CPU, SHAPE))
    assert {name: model.dtype for name, model in timing.models.items()} == {
        "model": torch.bfloat16,
        "NARROW": torch.bfloat16,
    }


@pytest.mark.parametrize("other", ["./model", "model/", "../{here}/model", "MODEL"])
def test_a_model_is_known_under_another_of_its_names(here: Path, other: str) -> None:
    (here / "MODEL").symlink_to(here / "model")
    options = TimingOptions(CPU, SHAPE, against=other.format(here=here.name))
    with pytest.raises(RequestError, match="is the model itself"):
        options.check_model("model")


def test_consent_for_a_dense_model_needs_its_name() -> None:
    with pytest.raises(RequestError, match="for the model that --against names"):
        TimingOptions(CPU, SHAPE, against_consent=Consent(trust_remote_code=True))


def test_against_names_another_dense_model(narrowed: str, here: Path) -> None:
    (here / "model").rename(here / "moved")
    said: list[str] = []
    timing = prepare_timing(load(narrowed), TimingOptions(CPU, SHAPE, against="moved"), said.append)
    assert list(timing.models) == ["moved", "NARROW"]
    assert said == ["loading moved"]
    with pytest.raises(RequestError, match=r"'\./gone' does not exist"):
        prepare_timing(load(narrowed), TimingOptions(CPU, SHAPE, against="./gone"))


def test_what_is_loaded_beside_it_is_said(narrowed: str) -> None:
    said: list[str] = []
    prepare_timing(load(narrowed), TimingOptions(CPU, SHAPE), said.append)
    assert said == ["loading model, which NARROW was made from"]


def test_it_is_timed_alone_and_says_why_where_the_dense_model_is_gone(
    narrowed: str, edit_json: Callable[..., None]
) -> None:
    edit_json(Path(narrowed, "result.json"), lambda result: result["model"].update(id="./gone"))
    said: list[str] = []
    timing = prepare_timing(load(narrowed), TimingOptions(CPU, SHAPE), said.append)
    assert list(timing.models) == ["NARROW"]
    assert "only NARROW is timed" in said[-1]
    assert "'./gone' does not exist" in said[-1]
    assert [record.name for record in timing.run()] == ["NARROW"]


def test_more_positions_than_a_model_has_are_refused(here: Path) -> None:
    options = TimingOptions(CPU, LatencyShape(prompt_len=120, new_tokens=30))
    with pytest.raises(RequestError, match="make 150 positions, the model has 128"):
        time_model("model", options)


def test_every_step_is_told(here: Path) -> None:
    class Watcher:
        seen: list[str]

        def track(self, items: Any, total: int, what: str) -> Any:
            self.seen = [what] * total
            yield from items

    watcher = Watcher()
    (record,) = time_model("model", TimingOptions(CPU, SHAPE), watcher)
    assert set(watcher.seen) == {"timing"}
    assert len(watcher.seen) > record.runs
