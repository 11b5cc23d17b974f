"""Whether memory holds what taking gradients needs, told from shapes before anything runs.

A backend that leaves it open is told what memory says, and takes the gradients or does without.
"""

import logging
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from owl_compress.compression.contract import AnyBackend, Backend, GradientChooser, GradientReader
from owl_compress.data.windows import TokenWindows
from owl_compress.device import free_device_bytes
from owl_compress.memory import free_host_bytes
from owl_compress.models.limits import hidden_size
from owl_compress.models.residence import is_streamed
from owl_compress.models.state import parameter_device
from owl_compress.models.structure import ModelStructure

logger = logging.getLogger(__name__)

B = TypeVar("B", bound=AnyBackend)

USABLE_SHARE = 0.8
"""Share of the free memory that gradients may take: the rest is for fragments and what an estimate misses."""

_FLOAT32, _FLOAT64 = 4, 8
_GRAPH_COPIES = 2
"""Values kept for the way back, as a multiple of what goes into and comes out of the linears.

Between 0.7 (OPT) and 1.8 (GPT-2) was counted over nine families, the rest is what backward itself makes.
"""
_SCORE_COPIES = 3
"""Attention scores, their softmax and its gradient, where an attention does keep them."""


@dataclass(frozen=True)
class GradientSizes:
    """What the need for memory follows from; a block here is the largest one.

    Args:
        n_blocks: number of blocks.
        n_block_parameters: parameters of a block.
        n_weights: weights of its linears.
        n_weights_largest: weights of the largest of them.
        n_features: rows and columns of all of them together.
        hidden: values of a token between blocks.
        vocabulary: logits of a token.
        n_tokens: tokens of all sequences that gradients are taken on.
        batch_tokens: tokens of one batch.
        n_scores: attention scores of one batch in one block, if its attention keeps them; else 0.
        element_size: bytes of a weight, and of an activation.
    """

    n_blocks: int
    n_block_parameters: int
    n_weights: int
    n_weights_largest: int
    n_features: int
    hidden: int
    vocabulary: int
    n_tokens: int
    batch_tokens: int
    n_scores: int
    element_size: int

    @property
    def weight_bytes(self) -> int:
        """The weights of one block."""
        return self.n_block_parameters * self.element_size

    @property
    def block_bytes(self) -> int:
        """One block on the way back without its weights: its gradients, one product, one batch's graph."""
        gradients = _FLOAT32 * self.n_weights + _FLOAT64 * self.n_weights_largest
        graph = _GRAPH_COPIES * self.batch_tokens * self.n_features * self.element_size
        return gradients + graph + _SCORE_COPIES * _FLOAT32 * self.n_scores

    @property
    def tail_bytes(self) -> int:
        """Logits of one batch and their gradient, both once more in float32, with the softmax."""
        return self.batch_tokens * self.vocabulary * (2 * self.element_size + 3 * _FLOAT32)

    @property
    def kept_bytes(self) -> int:
        """Inputs of every block, outputs and gradients of the last, and the sums of every block's linears."""
        inputs = (self.n_blocks + 2) * self.n_tokens * self.hidden * self.element_size
        return inputs + 2 * _FLOAT64 * self.n_blocks * self.n_features


@dataclass(frozen=True)
class MemoryBytes:
    """Bytes of memory, needed or free; on a CPU all of it is the host's."""

    device: int
    host: int


def memory_for_gradients(sizes: GradientSizes, *, on_device: bool, model_on_device: bool) -> MemoryBytes:
    """What `measure_salience` needs beside the model: numbers in, numbers out.

    Args:
        sizes: see there.
        on_device: blocks run on a device with memory of its own, not on the host.
        model_on_device: the whole model lies there already, so that no block has to come and the tail runs
            there; else both are the host's.
    """
    if not on_device:
        return MemoryBytes(device=0, host=sizes.kept_bytes + max(sizes.block_bytes, sizes.tail_bytes))
    if model_on_device:
        return MemoryBytes(device=max(sizes.block_bytes, sizes.tail_bytes), host=sizes.kept_bytes)
    return MemoryBytes(
        device=sizes.weight_bytes + sizes.block_bytes, host=sizes.kept_bytes + sizes.tail_bytes
    )


def holds(free: MemoryBytes, needed: MemoryBytes) -> bool:
    """Whether `needed` is at most `USABLE_SHARE` of what is free, on device and host alike."""
    return needed.device <= USABLE_SHARE * free.device and needed.host <= USABLE_SHARE * free.host


def settled_backend(
    backend: B,
    model: nn.Module,
    structure: ModelStructure,
    calibration: TokenWindows | None,
    batch_size: int,
    device: torch.device,
) -> tuple[B | Backend, tuple[str, ...]]:
    """`backend` with its gradients taken or left out, and a line for the result that says what it became.

    A backend that leaves nothing open comes back as it is, without a line. That memory decides is what was
    asked for, and so no fallback.
    """
    if not isinstance(backend, GradientChooser) or not backend.leaves_gradients_open or calibration is None:
        return backend, ()
    if is_streamed(model):
        settled, what = backend.settled(memory_holds_gradients=False)
        return settled, (f"{what}: gradients take the whole model in memory, and its blocks are on disk",)
    windows = windows_of_gradients(backend, calibration)
    sizes = gradient_sizes(model, structure, windows, batch_size)
    needed = memory_for_gradients(
        sizes,
        on_device=device.type != "cpu",
        model_on_device=parameter_device(model).type == device.type,
    )
    free = MemoryBytes(free_device_bytes(device), free_host_bytes())
    logger.info("gradients need %s, free is %s", needed, free)
    is_held = holds(free, needed)
    verdict = "at most" if is_held else "more than"
    settled, what = backend.settled(memory_holds_gradients=is_held)
    return settled, (
        f"{what}: gradients need {_shown(needed)}, {verdict} {USABLE_SHARE:.0%} of what was free",
    )


def windows_of_gradients(backend: GradientReader, calibration: TokenWindows) -> TokenWindows:
    """The calibration windows that `backend` wants gradients of."""
    samples = backend.gradient_samples
    return calibration if samples is None else calibration.first(samples)


def gradient_sizes(
    model: Any, structure: ModelStructure, windows: TokenWindows, batch_size: int
) -> GradientSizes:
    """The sizes for gradients of `model`, taken on all of `windows`."""
    block = max(structure.blocks, key=lambda site: site.n_weights)
    config = model.config
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    embeddings = model.get_input_embeddings().weight
    sequences, seq_len = windows.ids.shape
    batch = min(batch_size, sequences)
    # Others compute the scores in pieces and forget them.
    keeps_scores = getattr(config, "_attn_implementation", None) == "eager"
    n_heads = int(getattr(text, "num_attention_heads", 0))
    return GradientSizes(
        n_blocks=len(structure.blocks),
        n_block_parameters=sum(parameter.numel() for parameter in block.module.parameters()),
        n_weights=block.n_weights,
        n_weights_largest=max((linear.n_weights for linear in block.linears), default=0),
        n_features=sum(sum(linear.shape) for linear in block.linears),
        hidden=hidden_size(model),
        vocabulary=embeddings.shape[0],
        n_tokens=sequences * seq_len,
        batch_tokens=batch * seq_len,
        n_scores=batch * n_heads * seq_len**2 if keeps_scores else 0,
        element_size=embeddings.element_size(),
    )


def _shown(needed: MemoryBytes) -> str:
    host = f"{needed.host / 2**20:,.1f} MiB of host memory"
    return f"{needed.device / 2**20:,.1f} MiB of device memory and {host}" if needed.device else host
