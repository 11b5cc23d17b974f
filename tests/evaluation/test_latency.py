"""Latency on the host: counts, medians, turns; and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from transformers import LlamaForCausalLM

from owl_compress import compress_
from owl_compress.allocators import Target, allocate
from owl_compress.backends.structured import Structured
from owl_compress.documents.measurements import LatencyShape
from owl_compress.errors import RequestError
from owl_compress.evaluation import stopwatch as clock
from owl_compress.evaluation.latency import Contender, check_kernel, compare, compare_kernels, latency
from owl_compress.forms.semi_structured import weight_bytes
from owl_compress.importance.estimator import outline

SHAPE = LatencyShape(batch_size=2, prompt_len=10, new_tokens=3)
CPU = torch.device("cpu")


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only moves when the test moves it: its one entry is the time, in seconds."""
    at = [0.0]
    monkeypatch.setattr(clock, "perf_counter", lambda: at[0])
    return at


def takes(module: nn.Module, at: list[float], seconds: Callable[[int], float]) -> None:
    """Let a call of `module` take `seconds` of its number of tokens, on the clock `at`."""
    original = module.forward

    def forward(*positional: Any, **named: Any) -> Any:
        inputs = positional[0] if positional else named["hidden_states"]
        at[0] += seconds(inputs.shape[1])
        return original(*positional, **named)

    module.forward = forward  # type: ignore[method-assign]


def test_a_prefill_and_then_one_token_at_a_time(tiny_llama: LlamaForCausalLM) -> None:
    seen: list[tuple[int, ...]] = []

    def note(module: Any, args: Any, options: dict[str, Any]) -> None:
        seen.append(tuple(options["input_ids"].shape))

    tiny_llama.register_forward_pre_hook(note, with_kwargs=True)
    (record,) = latency([Contender("tiny", tiny_llama)], SHAPE, runs=2)
    assert seen == [(2, 10), (2, 1), (2, 1), (2, 1)] * 4  # two of them to warm up
    assert (record.name, record.kernel, record.runs) == ("tiny", "dense", 2)
    assert record.prefill_tokens_per_second == pytest.approx(20 / record.prefill_seconds)
    assert record.decode_tokens_per_second == pytest.approx(2 / record.decode_seconds_per_token)
    assert (record.device, record.dtype, record.converted_linears) == ("cpu", "float32", 0)
    assert record.threads == torch.get_num_threads()
    assert record.peak_device_bytes == 0 < record.peak_host_bytes
    assert record.speedup is None


def test_where_the_time_goes(tiny_llama: LlamaForCausalLM, ticking: list[float]) -> None:
    takes(tiny_llama.model.embed_tokens, ticking, lambda tokens: 100.0)
    for index, block in enumerate(tiny_llama.model.layers):
        takes(block, ticking, lambda tokens, index=index: 10.0 ** -(index + 1) * tokens)
    takes(tiny_llama.model.norm, ticking, lambda tokens: 1000.0)
    takes(tiny_llama.lm_head, ticking, lambda tokens: 2.0 * tokens)
    (record,) = latency([Contender("tiny", tiny_llama)], SHAPE, runs=1)
    assert record.head is not None
    assert record.blocks.prefill_seconds == pytest.approx(1.11)
    assert record.blocks.decode_seconds_per_token == pytest.approx(0.111)
    assert record.head.prefill_seconds == pytest.approx(20)
    assert record.head.decode_seconds_per_token == pytest.approx(2)
    assert record.prefill_seconds == pytest.approx(1121.11)
    assert record.decode_seconds_per_token == pytest.approx(1102.111)


def test_models_take_turns_and_medians_leave_the_warm_up_out(
    tiny_llama: LlamaForCausalLM, make_model: Callable[[str], Any], ticking: list[float]
) -> None:
    other, turns = make_model("llama"), []
    # Seconds of each pass of the prefill by run, the first two to warm up; decode takes half of that.
    by_run = {tiny_llama: [900.0, 900.0, 8.0, 50.0, 12.0], other: [900.0, 900.0, 4.0, 3.0, 99.0]}
    for model, seconds in by_run.items():

        def of(tokens: int, model: Any = model, left: list[float] = seconds) -> float:
            if tokens > 1:
                turns.append(model)
            return left[turns.count(model) - 1] / (1 if tokens > 1 else 2)

        takes(model.model.layers[1], ticking, of)
        takes(model.lm_head, ticking, lambda tokens: 1.0)
    dense, small = latency([Contender("dense", tiny_llama), Contender("small", other)], SHAPE, runs=3)
    assert turns == [tiny_llama, other] * 5
    assert (dense.prefill_seconds, small.prefill_seconds) == (13.0, 5.0)
    assert (dense.blocks.prefill_seconds, small.blocks.decode_seconds_per_token) == (12.0, 2.0)
    assert dense.speedup is None
    assert small.speedup is not None
    assert small.speedup.model_dump() == {
        "prefill": pytest.approx(13 / 5),
        "decode": pytest.approx(7 / 3),
        "blocks_prefill": 3.0,
        "blocks_decode": 3.0,
        "head_prefill": 1.0,
        "head_decode": 1.0,
    }


def test_a_model_that_names_no_head(make_model: Callable[[str], Any]) -> None:
    model, whole = make_model("opt"), make_model("opt")
    model.get_output_embeddings = lambda: None
    first, second = compare({"without": model, "with": whole}, SHAPE, CPU, runs=1)
    assert first.head is None
    assert second.head is not None
    assert second.speedup is not None
    assert second.speedup.head_decode is None


def test_every_family_is_timed(make_model: Callable[[str], Any]) -> None:
    for name in ("gemma2", "phi3", "gpt2", "bloom", "falcon_alibi", "gemma3_with_vision"):
        (record,) = compare({name: make_model(name)}, SHAPE, CPU, runs=1)
        assert record.head is not None, name
        inside = record.blocks.prefill_seconds + record.head.prefill_seconds
        assert 0 < inside < record.prefill_seconds, name


def test_weights_count_once_and_as_they_are_stored(make_model: Callable[[str], Any]) -> None:
    tied, bare = make_model("gpt2"), nn.Linear(8, 4)
    assert tied.lm_head.weight is tied.transformer.wte.weight
    buffers = sum(buffer.nbytes for buffer in tied.buffers())
    assert weight_bytes(tied) == 4 * sum(p.numel() for p in tied.parameters()) + buffers
    assert weight_bytes(bare.half()) == 2 * (32 + 4)
    (record,) = compare({"tied": tied}, SHAPE, CPU, runs=1)
    assert (record.weight_bytes, record.n_params) == (
        weight_bytes(tied),
        sum(p.numel() for p in tied.parameters()),
    )


def test_the_model_is_left_as_it_was(tiny_llama: LlamaForCausalLM) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}
    compare_kernels("tiny", tiny_llama, "dense", SHAPE, CPU)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_llama.state_dict().items())
    assert torch.is_grad_enabled()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny_llama.modules()]
    assert sum(hooks) == 0


def test_no_hook_is_left_by_an_error(tiny_llama: LlamaForCausalLM) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    tiny_llama.model.layers[1].forward = fail
    with pytest.raises(MemoryError):
        compare({"tiny": tiny_llama}, SHAPE, CPU)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny_llama.modules()]
    assert sum(hooks) == 0


def test_refused(tiny_llama: LlamaForCausalLM) -> None:
    with pytest.raises(RequestError, match="make 150 positions, the model has 128: lower one"):
        latency([Contender("tiny", tiny_llama)], LatencyShape(prompt_len=120, new_tokens=30))
    with pytest.raises(RequestError, match="unknown kernel 'fast': it is one of dense, semi-structured"):
        check_kernel("fast", CPU)
    with pytest.raises(RequestError, match="'semi-structured' needs a CUDA device and this is the cpu"):
        check_kernel("semi-structured", CPU)


@pytest.mark.slow  # two models through a C++ compiler
@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script:DeprecationWarning"
)  # torch's own, on its way to inductor
def test_compiled_decoding_is_the_same_decoding(
    make_model: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens chosen are those of the plain model, with heads and channels removed as well."""
    chosen: list[list[int]] = []
    greedy = Tensor.argmax

    def note(logits: Tensor, dim: int) -> Tensor:
        token = greedy(logits, dim=dim)
        chosen[-1] += token.flatten().tolist()
        return token

    monkeypatch.setattr(Tensor, "argmax", note)
    models = {"dense": make_model("llama"), "narrow": make_model("llama")}
    plan = allocate(outline(models["narrow"]), "uniform", Target.from_prune_ratio(0.5))
    compress_(models["narrow"], plan, Structured(importance="magnitude", round_to=8))
    for compiled in (False, True):
        chosen.append([])
        dense, narrow = compare(models, SHAPE, CPU, runs=1, compiled=compiled)
        assert {dense.compiled, narrow.compiled} == {compiled}
        for record in (dense, narrow):
            assert record.head is not None
            inside = record.blocks.decode_seconds_per_token + record.head.decode_seconds_per_token
            assert 0 < inside < record.decode_seconds_per_token
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 2 * 3 * SHAPE.batch_size * SHAPE.new_tokens
    assert "forward" not in vars(models["dense"].model)


def test_a_compiler_that_is_missing(tiny_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(*_: Any, **__: Any) -> None:
        raise TorchDynamoException("No working C++ compiler found\nand a long trace")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: give_up)
    with pytest.raises(RequestError, match=r"--compile failed \(No working C\+\+ compiler found\): it needs"):
        compare({"tiny": tiny_llama}, SHAPE, CPU, compiled=True)
    assert "forward" not in vars(tiny_llama.model)


def test_a_model_that_does_not_compile(tiny_llama: LlamaForCausalLM) -> None:
    tiny_llama._can_compile_fullgraph = False
    with pytest.raises(RequestError, match="LlamaForCausalLM cannot be compiled for decoding: drop"):
        compare({"tiny": tiny_llama}, SHAPE, CPU, compiled=True)
