"""The footprint is what the model's own cache, tensors and torch's count of operations say."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaForCausalLM

from owl_compress.errors import RequestError
from owl_compress.forms.narrowing import KeptUnits, keep_units_
from owl_compress.models.anatomy import find_anatomy
from owl_compress.models.footprint import Footprint, footprint
from owl_compress.models.state import cache_name
from owl_compress.models.structure import find_structure

CONTEXT = 7
# What transformers stores of each key-value head: Falcon's grouped attention repeats them per query head.
COPIES = {"falcon_grouped": 2}


def counted(model: Any) -> Footprint:
    return footprint(model, find_structure(model))


def cache_bytes_per_token(model: Any) -> float:
    """Bytes of keys and values that one forward pass leaves in the model's own cache, per token."""
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad():
        model(input_ids=torch.arange(3, 3 + CONTEXT)[None], use_cache=True, **{cache_name(model): cache})
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.nbytes for tensor in tensors) / CONTEXT


def flops(model: Any, ids: torch.Tensor) -> int:
    """Products that torch counts in one forward pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gemma2", "gemma3", "phi3", "opt", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_is_the_models_own(make_model: Callable[[str], Any], name: str, dtype: torch.dtype) -> None:
    model = make_model(name).to(dtype)
    assert counted(model).kv_cache_bytes_per_token == cache_bytes_per_token(model)


@pytest.mark.parametrize("name", ["gpt_neox", "bloom", "falcon", "falcon_alibi", "falcon_grouped"])
def test_the_cache_of_fused_projections(make_model: Callable[[str], Any], name: str) -> None:
    model = make_model(name)
    found = counted(model).kv_cache_bytes_per_token
    assert found is not None
    assert found * COPIES.get(name, 1) == cache_bytes_per_token(model)


def test_a_cut_block_counts_what_is_left(tiny_llama: LlamaForCausalLM) -> None:
    before = counted(tiny_llama)
    site = find_structure(tiny_llama).blocks[1]
    kept = KeptUnits(channels=torch.arange(24), heads=torch.tensor([2, 3]), kv_heads=torch.tensor([1]))
    keep_units_(site, find_anatomy(site), kept)
    after = counted(tiny_llama)
    # Of 32 hidden: 40 of 64 channels in three matrices; 2 of 4 heads of 8 in q and o, 1 of 2 in k and v.
    gone = 3 * 32 * 40 + 2 * 32 * 16 + 2 * 32 * 8
    assert before.n_params - after.n_params == gone
    assert before.flops_per_token_blocks - after.flops_per_token_blocks == 2 * gone
    assert after.kv_cache_bytes_per_token == cache_bytes_per_token(tiny_llama)
    assert (before.flops_per_token_attention, after.flops_per_token_attention) == (
        3 * 4 * 4 * 8 * 128,
        (2 * 4 * 4 * 8 + 4 * 2 * 8) * 128,
    )
    assert before.flops_per_token_head == after.flops_per_token_head == 2 * 259 * 32


def test_operations_are_those_that_torch_counts(make_model: Callable[[str], Any]) -> None:
    ids = torch.arange(3, 3 + CONTEXT)[None]
    for name in ("llama", "qwen3", "gemma2", "phi3", "opt", "gpt2", "gpt_neox"):
        model = make_model(name)
        model.set_attn_implementation("eager")  # whose products torch can count
        found = footprint(model, find_structure(model), context_len=CONTEXT)
        parts = (
            found.flops_per_token_blocks,
            found.flops_per_token_head,
            found.flops_per_token_attention,
        )
        assert CONTEXT * sum(part for part in parts if part is not None) == flops(model, ids), name


def test_the_context_is_stated(tiny_llama: LlamaForCausalLM) -> None:
    structure = find_structure(tiny_llama)
    short, whole = footprint(tiny_llama, structure, context_len=32), counted(tiny_llama)
    assert (short.context_len, whole.context_len) == (32, 128)
    assert short.flops_per_token_attention is not None
    assert whole.flops_per_token_attention == 4 * short.flops_per_token_attention
    with pytest.raises(RequestError, match="over the model's maximum of 128"):
        footprint(tiny_llama, structure, context_len=129)


def test_what_is_not_known_is_none(make_model: Callable[[str], Any]) -> None:
    found = counted(make_model("unknown"))
    assert found.kv_cache_bytes_per_token is None
    assert found.flops_per_token_attention is None
    assert found.flops_per_token_head is None
    assert found.flops_per_token_blocks == 2 * 3 * 2 * 32 * 64


def test_every_family_is_counted_and_written(family_model: Any) -> None:
    found = counted(family_model)
    assert found.n_params == sum(parameter.numel() for parameter in set(family_model.parameters()))
    assert Footprint.model_validate_json(found.model_dump_json()) == found
