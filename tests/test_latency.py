"""Latency on the host: counts, medians, turns; and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from owl_compress import latency as timing
from owl_compress.errors import RequestError
from owl_compress.latency import LatencyShape, check_kernel, compare_kernels, latency

SHAPE = LatencyShape(batch_size=2, prompt_len=10, new_tokens=3)


def test_a_prefill_and_then_one_token_at_a_time(tiny_llama: LlamaForCausalLM) -> None:
    seen: list[tuple[int, ...]] = []

    def note(module: Any, args: Any, options: dict[str, Any]) -> None:
        seen.append(tuple(options["input_ids"].shape))

    tiny_llama.register_forward_pre_hook(note, with_kwargs=True)
    (record,) = latency({"dense": tiny_llama}, SHAPE, runs=2)
    assert seen == [(2, 10), (2, 1), (2, 1), (2, 1)] * 4  # two of them to warm up
    assert record.runs == 2
    assert record.prefill_tokens_per_second == pytest.approx(20 / record.prefill_seconds)
    assert record.decode_tokens_per_second == pytest.approx(2 / record.decode_seconds_per_token)
    assert (record.device, record.dtype, record.converted_linears) == ("cpu", "float32", 0)
    assert record.peak_device_bytes == 0 < record.peak_host_bytes


def test_models_take_turns_and_medians_leave_the_warm_up_out(
    tiny_llama: LlamaForCausalLM, make_model: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    other, turns = make_model("llama"), []

    def timed(model: Any, shape: LatencyShape) -> tuple[tuple[float, float], int]:
        turns.append(model)
        first = 100.0 if len(turns) <= 4 else float(len(turns))
        return (first, 2 * first), len(turns)

    monkeypatch.setattr(timing, "_timed", timed)
    dense, sparse = latency({"dense": tiny_llama, "semi-structured": other}, SHAPE, runs=3)
    assert turns == [tiny_llama, other] * 5
    assert (dense.prefill_seconds, sparse.prefill_seconds) == (7.0, 8.0)
    assert (dense.decode_seconds_per_token, sparse.peak_device_bytes) == (14.0, 10)


def test_the_model_is_left_as_it_was(tiny_llama: LlamaForCausalLM) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}
    compare_kernels(tiny_llama, "dense", SHAPE, torch.device("cpu"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_llama.state_dict().items())
    assert torch.is_grad_enabled()


def test_refused(tiny_llama: LlamaForCausalLM) -> None:
    with pytest.raises(RequestError, match="make 150 positions, the model has 128: lower one"):
        latency({"dense": tiny_llama}, LatencyShape(prompt_len=120, new_tokens=30))
    with pytest.raises(RequestError, match="unknown kernel 'fast': it is one of dense, semi-structured"):
        check_kernel("fast", torch.device("cpu"))
    with pytest.raises(RequestError, match="'semi-structured' needs a CUDA device and this is the cpu"):
        check_kernel("semi-structured", torch.device("cpu"))
