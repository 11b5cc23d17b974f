"""What can be removed from a block whole: FFN channels and attention heads, and where each of them lies.

A *unit* is the smallest thing that can go without changing what the rest computes: a channel of the
feed-forward, a query head, or a key-value head with the query heads that read it. The tensors of a unit lie
in several linears, as rows of some and columns of others; a `Slot` says which.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from torch import Tensor

from owl_compress.families import BlockSite

Axis = Literal["out", "in"]


class Part(StrEnum):
    """The two sublayers of a block."""

    ATTENTION = "attention"
    MLP = "mlp"


@dataclass(frozen=True)
class Slot:
    """Where the units of a part lie along one axis of one linear.

    `linear` is the full name of a `LinearSite`. `index` is int64 of shape [units, entries]: row k holds the
    rows (axis "out") or columns ("in") of the weight [out, in] that belong to unit k.
    """

    linear: str
    axis: Axis
    index: Tensor


@dataclass(frozen=True)
class FeedForward:
    """The channels of a feed-forward: rows of gate and up (or fc1), columns of down (or fc2)."""

    n_channels: int
    channels: tuple[Slot, ...]
    output: str


@dataclass(frozen=True)
class Attention:
    """The heads of an attention, as they are now.

    Query head h reads key-value head `h // n_queries_per_group`. `output` is the full name of the output
    projection.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    queries: tuple[Slot, ...]
    keys_values: tuple[Slot, ...]
    output: str

    @property
    def n_queries_per_group(self) -> int:
        """Query heads that read each key-value head."""
        return self.n_heads // self.n_kv_heads


@dataclass(frozen=True)
class BlockAnatomy:
    """The parts of one block; a part that was not recognised is None, and `unrecognised` says why."""

    block: str
    attention: Attention | None
    mlp: FeedForward | None
    unrecognised: Mapping[Part, str] = field(default_factory=dict)


def find_anatomy(site: BlockSite) -> BlockAnatomy:
    """The removable parts of the block, by its family and the shapes that its linears have now."""
    raise NotImplementedError(site.name)
