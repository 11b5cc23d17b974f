"""The folder of a compressed model: in which form, with which documents, and what came before."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.documents.plan import Plan
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.result import Result
from owl_compress.errors import RequestError
from owl_compress.pipeline.execution import compress_, make_plan, run
from owl_compress.pipeline.folder import earlier_steps, save
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.stages import compress_ as compress_in_memory_
from owl_compress.pipeline.stages import load

MakeRecipe = Callable[..., Recipe]
Compressed = tuple[LoadedModel, Result, Plan]
WEIGHTS = "model.safetensors"
BITS = {"bits": 3, "group_size": 16}


def compressed(recipe: Recipe) -> Compressed:
    """A model compressed in memory, with its result and plan."""
    session = Session.open(recipe)
    _, plan = make_plan(session)
    return session.loaded, compress_(session, plan), plan


@pytest.fixture
def pruned(here: Path, recipe: MakeRecipe) -> Compressed:
    """`model` with 60 % of its weights removed."""
    return compressed(recipe("magnitude", allocator="uniform", sparsity=0.6))


@pytest.fixture
def quantized(here: Path, recipe: MakeRecipe) -> Compressed:
    """`model` at three bits."""
    return compressed(recipe("rtn", allocator="uniform", **BITS))


def names_in(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def test_result_and_plan_lie_beside_the_weights(pruned: Compressed) -> None:
    loaded, result, plan = pruned
    written = save(loaded, result, plan, "OUT")
    assert {"result.json", "plan.json", "README.md", WEIGHTS, "config.json"} <= names_in("OUT")
    assert not {"report.json", "recipe.yaml"} & names_in("OUT")
    assert Result.read("OUT/result.json") == written
    assert Plan.read("OUT/plan.json") == plan
    n_bytes = Path("OUT", WEIGHTS).stat().st_size
    n_params = sum(tensor.numel() for tensor in load_file(Path("OUT", WEIGHTS)).values())
    assert (result.totals.bytes_on_disk, written.totals.bytes_on_disk) == (None, n_bytes)
    assert written.totals.bits_per_weight == pytest.approx(8 * n_bytes / n_params)


def test_a_report_and_a_recipe_are_written_where_they_are_given(here: Path, recipe: MakeRecipe) -> None:
    session = Session.open(recipe("wanda", sparsity=0.5))
    report, plan = make_plan(session)
    result = compress_(session, plan)
    save(session.loaded, result, plan, "OUT", report=report, recipe=session.recipe)
    assert report is not None
    assert Path("OUT/report.json").read_text() == report.to_json()
    assert Recipe.read("OUT/recipe.yaml") == session.recipe
    assert "sparsity: 0.5" in Path("OUT/README.md").read_text()


def test_codes_are_kept_unless_told_otherwise(quantized: Compressed) -> None:
    loaded, result, plan = quantized
    packed = save(loaded, result, plan, "PACKED")
    dense = save(loaded, result, plan, "DENSE", keeps_codes=False)
    codes, plain = load_file(Path("PACKED", WEIGHTS)), load_file(Path("DENSE", WEIGHTS))
    for budget in plan.budgets:
        assert codes[f"{budget.name}.weight_packed"].dtype == torch.int32
        assert torch.equal(
            plain[f"{budget.name}.weight"], loaded.model.get_parameter(f"{budget.name}.weight")
        )
        assert f"{budget.name}.weight" not in codes
    assert "quantization_config" in json.loads(Path("PACKED/config.json").read_text())
    assert "quantization_config" not in json.loads(Path("DENSE/config.json").read_text())
    n_params = result.totals.n_params_after
    assert packed.totals.bytes_on_disk == Path("PACKED", WEIGHTS).stat().st_size
    assert packed.totals.bits_per_weight == pytest.approx(
        8 * Path("PACKED", WEIGHTS).stat().st_size / n_params
    )
    assert dense.totals.bytes_on_disk == Path("DENSE", WEIGHTS).stat().st_size
    # stored dense, it still stands for three bits, a scale of 32 for every 16 of them, and the embeddings
    coded = 27_648 * (3 + 32 / 16) + (n_params - 27_648) * 32
    assert dense.totals.bits_per_weight == pytest.approx(coded / n_params)


def test_an_export_may_be_named(here: Path, recipe: MakeRecipe, tokenizer: PreTrainedTokenizerFast) -> None:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    LlamaForCausalLM(config).save_pretrained("wide")
    tokenizer.save_pretrained("wide")
    options = {"prune_ratio": 0.5, "round_to": 256, "parts": "mlp", "allocator": "uniform"}
    loaded, result, plan = compressed(recipe("structured", model="wide", importance="magnitude", **options))
    save(loaded, result, plan, "OUT", export="decilm")
    described = json.loads(Path("OUT/config.json").read_text())
    assert described["architectures"] == ["DeciLMForCausalLM"]
    assert load_file(Path("OUT", WEIGHTS))["model.layers.1.mlp.up_proj.weight"].shape == (256, 32)
    assert "decilm" in Path("OUT/README.md").read_text()


def test_codes_are_exported_dequantised_where_they_are_not_to_be_kept(
    here: Path, recipe: MakeRecipe, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained("wide")
    tokenizer.save_pretrained("wide")
    loaded, result, plan = compressed(recipe("rtn", model="wide", allocator="uniform", **BITS))
    with pytest.raises(RequestError, match="it holds plain weights, not packed codes"):
        save(loaded, result, plan, "CODES", export="decilm")
    assert not Path("CODES").exists()
    save(loaded, result, plan, "OUT", keeps_codes=False, export="decilm")
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(load_file(Path("OUT", WEIGHTS))[name], loaded.model.get_parameter(name))


def test_the_plan_of_another_compression_is_refused(pruned: Compressed, here: Path) -> None:
    loaded, result, plan = pruned
    other = plan.model_copy(update={"report": "of another"})
    with pytest.raises(RequestError, match="the result is not that of the plan"):
        save(loaded, result, other, "OUT")
    assert not Path("OUT").exists()


def test_an_unknown_export_is_refused(pruned: Compressed) -> None:
    with pytest.raises(RequestError, match="unknown export 'decilmm': did you mean 'decilm'"):
        save(*pruned, "OUT", export="decilmm")
    assert not Path("OUT").exists()


def test_what_a_form_cannot_hold_leaves_nothing(
    here: Path, pruned: Compressed, listing: Callable[[Path], dict[str, str]]
) -> None:
    before = listing(here)
    with pytest.raises(RequestError, match="cannot be exported as DeciLM"):
        save(*pruned, "deep/OUT", export="decilm")
    assert listing(here) == before


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(
    here: Path, pruned: Compressed, listing: Callable[[Path], dict[str, str]]
) -> None:
    before = listing(here)
    with pytest.raises(RequestError, match="output folder model exists and is not empty"):
        save(*pruned, "model")
    assert listing(here) == before
    Path("EMPTY").mkdir()
    save(*pruned, "EMPTY")
    assert WEIGHTS in names_in("EMPTY")


def test_a_model_that_nobody_compressed_has_no_past(here: Path) -> None:
    assert earlier_steps(load("model")) == ()


def test_the_steps_before_are_those_of_the_folder_that_was_loaded(here: Path, recipe: MakeRecipe) -> None:
    first = run(recipe("structured", prune_ratio=0.4, round_to=8), "ONE").result
    second = run(recipe("wanda", model="ONE", sparsity=0.5), "TWO").result
    past = earlier_steps(load("TWO"))
    assert [(step.model, step.backend) for step in past] == [("model", "structured"), ("ONE", "wanda")]
    assert [step.unit.value for step in past] == ["width", "density"]
    n_params = [
        sum(tensor.numel() for tensor in load_file(Path(folder, WEIGHTS)).values())
        for folder in ("model", "ONE", "TWO")
    ]
    assert [(step.n_params_before, step.n_params_after) for step in past] == [
        (n_params[0], n_params[1]),
        (n_params[1], n_params[2]),
    ]
    assert first.earlier == ()
    assert second.earlier == past[:1]


def test_a_past_that_cannot_be_read_is_warned_of_once(
    here: Path, recipe: MakeRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    Path("model/result.json").write_text('{"schema": ')
    with caplog.at_level(logging.WARNING, "owl_compress"):
        result = run(recipe("magnitude", allocator="uniform", sparsity=0.5), "OUT").result
    (record,) = caplog.records
    assert "what was done to the model before is not known" in record.getMessage()
    assert str(Path("model/result.json")) in record.getMessage()
    assert result.earlier == Result.read("OUT/result.json").earlier == ()


def test_saving_finds_the_past_of_what_was_compressed_in_memory(here: Path, recipe: MakeRecipe) -> None:
    plan = run(recipe("magnitude", allocator="uniform", sparsity=0.5), "ONE").plan
    loaded = load("ONE")
    result = compress_in_memory_(loaded.model, plan, "magnitude")
    assert result.earlier == ()
    assert [step.model for step in save(loaded, result, plan, "TWO").earlier] == ["model"]


def test_the_card_says_how_it_was_made_and_stored(quantized: Compressed, saved_linears: Any) -> None:
    loaded, result, plan = quantized
    save(loaded, result, plan, "PACKED")
    save(loaded, result, plan, "DENSE", keeps_codes=False)
    packed, dense = (Path(folder, "README.md").read_text() for folder in ("PACKED", "DENSE"))
    assert "pack-quantized" in packed
    assert "pack-quantized" not in dense
    weights: dict[str, Tensor] = saved_linears("DENSE")
    assert len(weights) == len(plan.budgets)
