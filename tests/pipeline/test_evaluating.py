"""An evaluation is refused before its model is loaded; then perplexity and speed come from one loading."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from owl_compress.consent import Consent
from owl_compress.documents.measurements import LatencyShape
from owl_compress.documents.recipe import Recipe
from owl_compress.errors import RequestError
from owl_compress.models.structure import find_structure
from owl_compress.pipeline.evaluating import EvaluationRequest
from owl_compress.pipeline.execution import run
from owl_compress.pipeline.stages import (
    evaluate,
    load,
)
from owl_compress.pipeline.timing import TimingOptions

MakeRecipe = Callable[..., Recipe]
GIVEN = {"seq_len": 32, "device": "cpu"}
CPU = torch.device("cpu")
SHAPE = LatencyShape(prompt_len=8, new_tokens=2)
WIDTH = {"prune_ratio": 0.4, "round_to": 8, "allocator": "uniform"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"max_windows": 0}, "0 windows are too few"),
        ({"bos": "always"}, "unknown bos 'always'"),
    ],
)
def test_refused_before_the_model_is_looked_for(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        EvaluationRequest.of("./nowhere", "other.txt", {**GIVEN, **changes})
    assert message in str(caught.value)
    assert "nowhere" not in str(caught.value)


def test_what_cannot_be_timed_is_refused_before_the_model_is_looked_for(tmp_path: Path) -> None:
    model = str(tmp_path / "nowhere")
    with pytest.raises(RequestError, match="is the model itself: name the dense one"):
        EvaluationRequest.of(model, "other.txt", GIVEN, TimingOptions(CPU, SHAPE, against=model))
    semi_structured = TimingOptions(torch.device("cuda"), SHAPE, "semi-structured")
    with pytest.raises(RequestError, match="nowhere holds no checkpoint: verify takes a folder"):
        EvaluationRequest.of(model, "other.txt", GIVEN, semi_structured)


def test_the_model_is_looked_for_when_it_runs() -> None:
    request = EvaluationRequest.of("./nowhere", "other.txt", GIVEN)
    with pytest.raises(RequestError, match=r"model path '\./nowhere' does not exist"):
        request.run()


def test_a_dense_model_that_is_missing_is_told_before_the_long_evaluation(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluating = "owl_compress.pipeline.evaluating.perplexity"
    monkeypatch.setattr(evaluating, lambda *_, **__: pytest.fail("evaluated"))
    timing = TimingOptions(CPU, SHAPE, against="./gone")
    with pytest.raises(RequestError, match=r"'\./gone' does not exist"):
        EvaluationRequest.of("model", "other.txt", GIVEN, timing).run()


def test_it_is_the_perplexity_of_the_whole_text(here: Path) -> None:
    found = EvaluationRequest.of("model", "other.txt", GIVEN).run()
    assert found.latency == []
    record = found.perplexity
    assert record == evaluate(load("model"), "other.txt", seq_len=32)
    assert (record.windows, record.seq_len, record.tokens) == (25, 32, 25 * 31)
    assert (record.data, record.dtype, record.n_params) == ("other.txt", "float32", 44_448)


def test_options_are_those_of_a_recipe(here: Path) -> None:
    options = {"seq_len": 16, "max_windows": 3, "dtype": "bfloat16", "batch_size": 2, "bos": "never"}
    found = EvaluationRequest.of("model", "other.txt", {**GIVEN, **options}).run().perplexity
    assert (found.windows, found.seq_len, found.bos, found.dtype) == (3, 16, "never", "bfloat16")


def test_a_folder_is_evaluated_and_timed_beside_its_dense_model(here: Path, recipe: MakeRecipe) -> None:
    evaluated = run(recipe("structured", **WIDTH, data="other.txt"), "OUT").result.evaluation
    said: list[str] = []
    request = EvaluationRequest.of("OUT", "other.txt", GIVEN, TimingOptions(CPU, SHAPE))
    found = request.run(say=said.append)
    assert evaluated is not None
    assert found.perplexity == evaluated.compressed
    assert [record.name for record in found.latency] == ["model", "OUT"]
    assert [record.n_params for record in found.latency] == [
        evaluated.dense.n_params,
        evaluated.compressed.n_params,
    ]
    assert said == ["loading model, which OUT was made from"]


def test_consent_is_for_the_model_that_it_names(here: Path, recipe: MakeRecipe) -> None:
    """The dense model is pickled: not what OUT says of its origin, but the user has to allow that."""
    run(recipe("structured", **WIDTH), "OUT")
    torch.save(load("model").model.state_dict(), here / "model" / "pytorch_model.bin")
    (here / "model" / "model.safetensors").unlink()
    allowed = Consent(allow_pickle=True)

    def names_timed(timing: TimingOptions, said: list[str]) -> list[str]:
        request = EvaluationRequest.of("OUT", "other.txt", GIVEN, timing, allowed)
        return [record.name for record in request.run(say=said.append).latency]

    said: list[str] = []
    assert names_timed(TimingOptions(CPU, SHAPE), said) == ["OUT"]
    assert "only OUT is timed" in said[-1]
    assert "--against-allow-pickle" in said[-1]
    with pytest.raises(RequestError, match="only pickled ones"):
        names_timed(TimingOptions(CPU, SHAPE, against="model"), said)
    named = TimingOptions(CPU, SHAPE, against="model", against_consent=allowed)
    assert names_timed(named, said) == ["model", "OUT"]


def test_the_blocks_are_looked_for_once(
    here: Path, count_calls: Callable[[Callable[..., Any]], list[Any]]
) -> None:
    calls = [count_calls(one) for one in (find_structure, load)]
    EvaluationRequest.of("model", "other.txt", GIVEN).run()
    assert [len(found) for found in calls] == [1, 1]


def test_positions_that_the_model_lacks_are_told_before_the_evaluation(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "owl_compress.pipeline.evaluating.perplexity", lambda *_, **__: pytest.fail("evaluated")
    )
    timing = TimingOptions(CPU, LatencyShape(prompt_len=100_000, new_tokens=2))
    with pytest.raises(RequestError, match="100002 positions, the model has 128"):
        EvaluationRequest.of("model", "other.txt", GIVEN, timing).run()
