"""2:4 on a CUDA device: semi-structured tensors compute what dense ones do, and are timed in turn."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from owl_compress.documents.measurements import LatencyShape
from owl_compress.evaluation.latency import compare, compare_kernels
from owl_compress.forms.semi_structured import is_semi_structured, to_semi_structured_, weight_bytes
from owl_compress.models.structure import find_structure

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def two_of_four() -> LlamaForCausalLM:
    """Random, in float16, big enough for the kernel's tiles, with 2 of every 4 weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 259}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, max_position_embeddings=256))
    for linear in find_structure(model).linears:
        with torch.no_grad():
            linear.weight.view(-1, 4)[:, 2:] = 0
    return model.half().eval()


def test_converted_linears_compute_the_same(two_of_four: LlamaForCausalLM) -> None:
    model, ids = two_of_four.cuda(), torch.arange(3, 131, device="cuda")[None]
    with torch.inference_mode():
        dense = model(ids).logits
        n_linears = len(list(find_structure(model).linears))
        assert to_semi_structured_(model) == n_linears
        assert sum(is_semi_structured(module) for module in model.modules()) == n_linears
        torch.testing.assert_close(model(ids).logits, dense, rtol=2e-2, atol=2e-2)


def test_both_are_timed_and_the_model_stays_dense(two_of_four: LlamaForCausalLM) -> None:
    shape = LatencyShape(prompt_len=128, new_tokens=4)
    dense, sparse = compare_kernels("model", two_of_four, "semi-structured", shape, torch.device("cuda"))
    assert (dense.converted_linears, sparse.converted_linears) == (0, 14)
    assert min(dense.prefill_seconds, sparse.decode_seconds_per_token) > 0
    assert dense.peak_device_bytes > dense.weight_bytes > sparse.weight_bytes
    assert {parameter.device.type for parameter in two_of_four.parameters()} == {"cpu"}
    assert not any(is_semi_structured(module) for module in two_of_four.modules())


def test_models_in_turn_have_times_and_memory_of_their_own(two_of_four: LlamaForCausalLM) -> None:
    options = {**two_of_four.config.to_dict(), "num_hidden_layers": 24}
    large = LlamaForCausalLM(LlamaConfig(**options)).half().eval()
    shape = LatencyShape(prompt_len=64, new_tokens=4)
    first, second = compare({"large": large, "small": two_of_four}, shape, torch.device("cuda"))
    assert first.threads is None
    assert first.weight_bytes == weight_bytes(large) > 5 * second.weight_bytes
    for record in (first, second):
        assert record.weight_bytes < record.peak_device_bytes < record.weight_bytes + 16 * 2**20
        assert record.head is not None
        assert 0 < record.blocks.prefill_seconds < record.prefill_seconds
        assert 0 < record.head.decode_seconds_per_token < record.decode_seconds_per_token
    assert second.speedup is not None
    assert second.speedup.blocks_decode > 3


def test_compiled_decoding_does_not_wait_for_the_host() -> None:
    """Many small blocks: what they cost in eager mode is the calls, which CUDA graphs do without."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 16, "vocab_size": 259}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, max_position_embeddings=256))
    shape, device = LatencyShape(prompt_len=64, new_tokens=16), torch.device("cuda")
    (eager,) = compare({"model": model.half().eval()}, shape, device)
    (compiled,) = compare({"model": model}, shape, device, compiled=True)
    assert compiled.compiled
    assert compiled.blocks.decode_seconds_per_token < eager.blocks.decode_seconds_per_token / 2
