"""Tensors of the input that its model class does not load are carried over, or named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from owl_compress.allocators import Target, allocate
from owl_compress.backends.magnitude import Magnitude
from owl_compress.checkpoints.leftovers import Leftovers, carry_over, name_all
from owl_compress.checkpoints.loading import LoadedModel, load_model
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.checkpoints.tensors import tensor_files, tensor_from_checkpoint
from owl_compress.compression.driver import compress_with_
from owl_compress.importance.estimator import outline
from owl_compress.pipeline.folder import save

AHEAD = {"model.layers.92.enorm.weight": torch.ones(16), "model.layers.92.eh_proj.weight": torch.ones(16, 32)}


def put(folder: Path, more: dict[str, Tensor]) -> None:
    file = folder / "model.safetensors"
    save_file({**load_file(file), **more}, file, metadata={"format": "pt"})


def compressed(loaded: LoadedModel, out: Path, **options: Any) -> Any:
    plan = allocate(outline(loaded.model), "uniform", Target.from_sparsity(0.5), {})
    result = compress_with_(loaded.model, plan, Magnitude(), None)
    return save(loaded, result, plan, out, **options)


@pytest.fixture
def expected_leftovers(tmp_path: Path, small_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A checkpoint with a block for predicting ahead, which its class expects and leaves out unsaid."""
    sizes = {
        "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "n_routed_experts": 2,
        "num_experts_per_tok": 1, "moe_intermediate_size": 8, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 2, "pad_token_id": 0, "num_nextn_predict_layers": 1,
    }  # fmt: skip
    folder = tmp_path / "ahead"
    folder.mkdir()
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("glm4_moe", **sizes)).eval()
    save_checkpoint(model, small_tokenizer, folder)
    put(folder, AHEAD)
    return folder


def test_blocks_for_predicting_ahead_are_copied_along_and_named(
    expected_leftovers: Path, tmp_path: Path
) -> None:
    loaded = load_model(str(expected_leftovers))
    assert loaded.leftovers is not None
    assert loaded.leftovers.apart == tuple(sorted(AHEAD))
    result = compressed(loaded, tmp_path / "OUT")
    for name, tensor in AHEAD.items():
        assert torch.equal(tensor_from_checkpoint(tmp_path / "OUT", name), tensor)
    (note,) = [note for note in result.notes if "copied along" in note]
    assert note.startswith("2 tensors of the input that its model class does not load")
    assert note.endswith("model.layers.92.eh_proj.weight")
    assert note in (tmp_path / "OUT" / "README.md").read_text()
    assert json.loads((tmp_path / "OUT" / "config.json").read_text())["num_nextn_predict_layers"] == 1
    again = load_model(str(tmp_path / "OUT"))
    assert all(torch.equal(again.model.get_parameter(n), p) for n, p in loaded.model.named_parameters())
    assert again.leftovers is not None
    assert again.leftovers.apart == loaded.leftovers.apart


def test_bits_per_weight_are_those_of_the_model_and_bytes_those_of_the_files(
    checkpoint: Path, tmp_path: Path
) -> None:
    plain = compressed(load_model(str(checkpoint)), tmp_path / "plain").totals
    put(checkpoint, {"mtp.head.weight": torch.ones(100, 100)})
    totals = compressed(load_model(str(checkpoint)), tmp_path / "OUT").totals
    assert totals.bits_per_weight == plain.bits_per_weight
    assert totals.bytes_on_disk > plain.bytes_on_disk + 40_000


def test_buffers_of_modules_that_are_there_are_named_and_left_out(checkpoint: Path, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.masked_bias"
    put(checkpoint, {name: torch.ones(1)})
    result = compressed(load_model(str(checkpoint)), tmp_path / "OUT")
    assert [note for note in result.notes if "left out" in note and note.endswith(name)]
    assert name not in tensor_files(tmp_path / "OUT")


def test_shards_get_one_more(checkpoint: Path, tmp_path: Path, small_llama: Any) -> None:
    put(checkpoint, AHEAD)
    out = tmp_path / "OUT"
    out.mkdir()
    save_checkpoint(small_llama, None, out, max_shard_size="8KB")
    size = json.loads((out / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    (note,) = carry_over(Leftovers(checkpoint, apart=tuple(AHEAD)), out)
    assert "2 tensors" in note
    assert torch.equal(tensor_from_checkpoint(out, "model.layers.92.eh_proj"), torch.ones(16, 32))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == size + 4 * (16 + 16 * 32)
    AutoModelForCausalLM.from_pretrained(out)


def test_what_is_gone_by_then_is_named_and_no_reason_to_fail(checkpoint: Path, tmp_path: Path) -> None:
    (note,) = carry_over(Leftovers(tmp_path / "nowhere", apart=("mtp.weight",)), checkpoint)
    assert note.endswith("are left out, such as mtp.weight")


def test_codes_that_nothing_would_describe_are_not_copied(checkpoint: Path) -> None:
    name = "mtp.proj.weight_packed"
    (note,) = carry_over(Leftovers(checkpoint, apart=(name,)), checkpoint)
    assert note.endswith(f"left out, such as {name}")


def test_an_output_for_other_readers_names_them_all() -> None:
    assert name_all(None) == ()
    assert name_all(Leftovers(Path(), ("b.weight",), ("a.bias",))) == (
        "2 tensors of the input that its model class does not load are left out, such as a.bias",
    )


def test_a_model_that_is_all_there_has_none(checkpoint: Path, refusal: Callable[..., str]) -> None:
    loaded = load_model(str(checkpoint))
    assert loaded.leftovers == Leftovers(checkpoint)
    assert carry_over(loaded.leftovers, checkpoint) == ()
