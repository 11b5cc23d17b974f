"""What a model costs to hold and to run, counted from its tensors: parameters, cache, operations."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from owl_compress.documents.measurements import Footprint
from owl_compress.documents.units import Sublayer
from owl_compress.models.anatomy import Attention, find_anatomy
from owl_compress.models.limits import resolve_seq_len
from owl_compress.models.state import n_parameters
from owl_compress.models.structure import ModelStructure


def footprint(model: Any, structure: ModelStructure, *, context_len: int | None = None) -> Footprint:
    """Count the footprint of `model`.

    A weight that several blocks use is counted in each of them, since each multiplies by it; so is every
    expert of a mixture. Attention over a sliding window counts as if the window held the whole context. The
    cache is what the key-value heads have to say: transformers' Falcon of 40B and more stores each of them
    once per query head.

    Args:
        model: a causal language model.
        structure: its blocks and linears.
        context_len: for the attention's operations; by default 2048 or the model's maximum if that is less.

    Raises:
        RequestError: a context over the model's maximum.
    """
    context = resolve_seq_len(context_len, model.config)
    attentions = _attentions(structure)
    element_size = model.get_input_embeddings().weight.element_size()
    return Footprint(
        n_params=n_parameters(model),
        kv_cache_bytes_per_token=None
        if attentions is None
        else sum(2 * found.n_kv_heads * found.head_dim * element_size for found in attentions),
        flops_per_token_blocks=sum(
            2 * module.weight.numel()
            for site in structure.blocks
            for module in site.module.modules()
            if isinstance(module, nn.Linear | Conv1D)
        ),
        flops_per_token_head=_flops_of_the_head(model),
        flops_per_token_attention=None
        if attentions is None
        else sum(4 * found.n_heads * found.head_dim * context for found in attentions),
        context_len=context,
    )


def _attentions(structure: ModelStructure) -> Sequence[Attention] | None:
    """The attention of every block that has one, or None if any was not recognised."""
    anatomies = [find_anatomy(site) for site in structure.blocks]
    if any(Sublayer.ATTENTION in anatomy.unrecognised for anatomy in anatomies):
        return None
    return [anatomy.attention for anatomy in anatomies if anatomy.attention is not None]


def _flops_of_the_head(model: Any) -> int | None:
    find = getattr(model, "get_output_embeddings", None)
    head = find() if find else None
    return 2 * head.weight.numel() if head is not None else None
