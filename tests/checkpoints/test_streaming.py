"""A model whose blocks stay in its files computes what it does in memory, and holds no block meanwhile."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM

from owl_compress.checkpoints.loading import load_model
from owl_compress.checkpoints.reading import CheckpointSource
from owl_compress.checkpoints.streaming import streamed_model
from owl_compress.checkpoints.tensors import tensor_files, tensor_from_checkpoint
from owl_compress.errors import RequestError
from owl_compress.models.residence import is_streamed
from owl_compress.models.state import on_device
from owl_compress.models.structure import find_structure

IDS = torch.arange(3, 35)[None]
INDEX = "model.safetensors.index.json"
ARCHITECTURES = (
    "llama", "qwen2", "gemma2", "gemma3", "gemma3_with_vision", "phi3", "opt", "gpt2", "gpt_neox", "bloom",
    "falcon", "falcon_alibi", "starcoder2", "gptj", "codegen", "gpt_neo", "cohere", "nemotron", "mpt", "glm",
)  # fmt: skip


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=IDS).logits
    return logits


@pytest.fixture
def sharded(here: Path, tiny_llama: Any) -> Path:
    """The folder of the tiny model in several shards."""
    (here / "model" / "model.safetensors").unlink()
    tiny_llama.save_pretrained(here / "model", max_shard_size="40KB")
    assert (here / "model" / INDEX).exists()
    return here / "model"


def rewritten(folder: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Change one tensor in its shard."""
    file = tensor_files(folder)[name]
    tensors = load_file(file)
    tensors[name] = change(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_and_buffers_are_those_of_the_model_in_memory(
    name: str, make_model: Callable[[str], Any], tmp_path: Path
) -> None:
    make_model(name).to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="40KB")
    source = CheckpointSource.of_folder(tmp_path)
    streamed, whole = streamed_model(source).eval(), source.from_pretrained().eval()
    assert torch.equal(logits_of(streamed), logits_of(whole))
    buffers = dict(whole.named_buffers())
    for buffer_name, buffer in streamed.named_buffers():
        if not buffer.is_meta:  # saved with a block
            assert buffer.dtype == buffers[buffer_name].dtype
            assert torch.equal(buffer, buffers[buffer_name])
    is_tied = whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    assert (streamed.get_output_embeddings().weight is streamed.get_input_embeddings().weight) is is_tied


def test_blocks_hold_weights_only_while_somebody_works_on_them(sharded: Path) -> None:
    model = load_model(str(sharded), offload="disk").model
    block = find_structure(model).blocks[1]
    weight = tensor_from_checkpoint(sharded, "model.layers.1.mlp.up_proj.weight")
    with on_device(block.module, torch.device("cpu")):
        with on_device(block.module, torch.device("cpu")):
            pass
        assert torch.equal(block.module.mlp.up_proj.weight, weight)
    assert is_streamed(model)
    assert all(
        parameter.is_meta for site in find_structure(model).blocks for parameter in site.module.parameters()
    )
    assert not model.get_input_embeddings().weight.is_meta


def test_a_single_file_is_read_block_by_block_too(here: Path) -> None:
    streamed = load_model("model", offload="disk").model
    assert is_streamed(streamed)
    assert torch.equal(logits_of(streamed), logits_of(load_model("model").model))


def test_another_dtype_is_made_on_arrival(sharded: Path) -> None:
    streamed = load_model(str(sharded), offload="disk", dtype=torch.bfloat16).model
    whole = load_model(str(sharded), dtype=torch.bfloat16).model
    assert logits_of(streamed).dtype == torch.bfloat16
    assert torch.equal(logits_of(streamed), logits_of(whole))


def test_auto_keeps_weights_in_the_files_where_memory_is_short(
    sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_streamed(load_model(str(sharded), offload="auto").model)
    monkeypatch.setattr("owl_compress.checkpoints.loading.free_host_bytes", lambda: 100_000)
    assert is_streamed(load_model(str(sharded), offload="auto").model)
    assert not is_streamed(load_model(str(sharded), offload="host").model)


def test_a_shard_that_is_missing_is_named(sharded: Path) -> None:
    tensor_files(sharded)["model.layers.1.mlp.up_proj.weight"].unlink()
    with pytest.raises(RequestError, match=r"model-0000\d-of-0000\d.safetensors"):
        load_model(str(sharded), offload="disk")


def test_a_shard_that_goes_while_it_is_needed_is_named(sharded: Path) -> None:
    model = load_model(str(sharded), offload="disk").model
    file = tensor_files(sharded)["model.layers.2.mlp.up_proj.weight"]
    file.unlink()
    with pytest.raises(RequestError, match=file.name):
        logits_of(model)


def test_a_shard_that_is_written_again_under_way_is_refused(sharded: Path) -> None:
    model = load_model(str(sharded), offload="disk").model
    logits_of(model)
    rewritten(sharded, "model.layers.2.mlp.up_proj.weight", lambda weight: weight + 1)
    with pytest.raises(RequestError, match="written again while it was being read"):
        logits_of(model)


@pytest.mark.parametrize(
    ("shard", "message"),
    [("../else.safetensors", "does not lie in that folder"), (None, "lacks tensor 'model.layers.9.ghost'")],
)
def test_an_index_that_leads_astray_is_refused(sharded: Path, shard: str | None, message: str) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.layers.9.ghost"] = shard or next(iter(index["weight_map"].values()))
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(RequestError, match=message):
        load_model(str(sharded), offload="disk")


def test_a_tensor_of_another_shape_is_refused_by_name(sharded: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    rewritten(sharded, name, lambda weight: weight[:-1].clone())
    with pytest.raises(RequestError, match=rf"{name}.*\(63, 32\).*\(64, 32\)"):
        load_model(str(sharded), offload="disk")


def test_a_tensor_of_integers_is_refused_by_name(sharded: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    rewritten(sharded, name, lambda weight: weight.to(torch.int8))
    with pytest.raises(RequestError, match=f"{name}.*I8"):
        load_model(str(sharded), offload="disk")


def test_a_broken_weight_is_named_when_its_block_arrives(sharded: Path) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    rewritten(sharded, name, lambda weight: weight.fill_(float("nan")))
    model = load_model(str(sharded), offload="disk").model
    with pytest.raises(RequestError, match=f"{name} holds NaN or Inf"):
        logits_of(model)


def test_tensors_that_are_fused_on_the_way_into_memory_are_refused_by_name(
    here: Path, tokenizer: Any
) -> None:
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(here / "experts")
    tokenizer.save_pretrained(here / "experts")
    assert load_model("experts").model
    with pytest.raises(RequestError, match=r"experts\.0\.w1\.weight' is converted .* --offload host"):
        load_model("experts", offload="disk")


def test_pickled_weights_are_refused(here: Path, tiny_llama: Any) -> None:
    (here / "model" / "model.safetensors").unlink()
    torch.save(tiny_llama.state_dict(), here / "model" / "pytorch_model.bin")
    with pytest.raises(RequestError, match="no safetensors to read block by block: use --offload host"):
        load_model("model", offload="disk", allow_pickle=True)
