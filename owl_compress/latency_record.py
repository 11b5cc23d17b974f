"""What was timed, and what came out: the records of `latency`."""

from pydantic import PositiveInt

from owl_compress.files import Frozen
from owl_compress.kernels import Kernel


class LatencyShape(Frozen):
    """What is timed: a batch of prompts of one length, then tokens one at a time."""

    batch_size: PositiveInt = 1
    prompt_len: PositiveInt = 128
    new_tokens: PositiveInt = 32


class PartLatency(Frozen):
    """Seconds of a part of the model: in the prefill, and in each decoded token."""

    prefill_seconds: float
    decode_seconds_per_token: float


class Speedup(Frozen):
    """Seconds of the first model divided by those of this one: 2 is twice as fast."""

    prefill: float
    decode: float
    blocks_prefill: float
    blocks_decode: float
    head_prefill: float | None
    head_decode: float | None


class LatencyRecord(Frozen):
    """Medians over `runs`, warm-up left out; tokens per second count the whole batch.

    Prefill is one forward pass over the prompts, with the logits of every position. Decode is each further
    token, greedily chosen, with the key-value cache. `blocks` is the time between the start of the first
    block and the end of the last, `head` that of the output projection (None where the model does not name
    one), both inside the same runs; what is left is embedding, final norm, masks and choosing the token. On a
    CPU that costs four looks at the clock in each pass; see `owl_compress.stopwatch` for CUDA. Where decode
    is `compiled`, embedding, masks and final norm are one piece with the blocks and count as theirs.

    `peak_device_bytes` holds this model's weights, cache and activations, and of other models nothing (0 on a
    CPU). `weight_bytes` are its parameters and buffers, `peak_host_bytes` is of the whole process since its
    start. `threads` are those of a CPU, `speedup` compares with the first of the models timed in turn.
    """

    name: str
    kernel: Kernel
    compiled: bool = False
    device: str
    threads: int | None
    dtype: str
    shape: LatencyShape
    runs: int
    n_params: int
    prefill_seconds: float
    decode_seconds_per_token: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    blocks: PartLatency
    head: PartLatency | None
    speedup: Speedup | None = None
    weight_bytes: int
    peak_device_bytes: int
    peak_host_bytes: int
    converted_linears: int = 0
