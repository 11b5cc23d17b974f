"""Blocks computed in float32 where a CPU has no instructions for bfloat16.

There torch multiplies bfloat16 matrices many times slower than float32 ones (eight times on an AVX2 machine).
The visited block is widened for a run over all batches, never the model: its weights, and what it is called
with, are exact in float32. Hidden states between blocks stay bfloat16, as the model itself hands them on;
inside the block less is rounded than in the model.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_NARROW = torch.bfloat16
_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
"""What a CPU may have for it, in torch's words: x86 twice, Arm."""


def wider_dtype(module: nn.Module, device: torch.device) -> torch.dtype | None:
    """The type that `module` is better computed in on `device`; None where its own is as good as any."""
    if device.type != "cpu" or not any(one.dtype is _NARROW for one in module.parameters()):
        return None
    capabilities = torch.cpu.get_capabilities()
    return None if any(capabilities.get(name) for name in _INSTRUCTIONS) else torch.float32


@contextmanager
def widened(module: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Hold the bfloat16 tensors of `module` as `dtype` inside; the very same come back after the block."""
    narrow = [] if dtype is None else [*module.parameters(), *module.buffers()]
    kept = [(tensor, tensor.data) for tensor in narrow if tensor.dtype is _NARROW]
    try:
        for tensor, data in kept:
            tensor.data = data.to(dtype)
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data
