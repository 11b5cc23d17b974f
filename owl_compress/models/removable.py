"""The words in which heads and channels are spoken of: where each of them lies, and who counts them.

A *unit* is the smallest thing that can go without changing what the rest computes: a channel of the
feed-forward, a query head, or a key-value head with the query heads that read it. The tensors of a unit lie
in several linears, as rows of some and columns of others; a `Slot` says which.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from owl_compress.documents.units import Sublayer

Axis = Literal["out", "in"]
Count = Literal["heads", "kv_heads", "queries_per_group", "width"]
"""A number that a forward pass reads off its module: of heads, or all their values of a token together."""


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
class Counted:
    """Where the forward pass of an attention reads how many heads it has.

    `module` is the path of the attention below its block. `attributes` are dotted paths below it, `config`
    the keys that it reads off its configuration.
    """

    module: str
    attributes: Mapping[str, Count]
    config: Mapping[str, Count]


@dataclass(frozen=True)
class Attention:
    """The heads of an attention, as they are now.

    Query head h reads key-value head `h // n_queries_per_group`. `output` is the full name of the output
    projection. `counted` says what its forward pass reads; None where the table of families says it.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    queries: tuple[Slot, ...]
    keys_values: tuple[Slot, ...]
    output: str
    counted: Counted | None = None

    @property
    def n_queries_per_group(self) -> int:
        """Query heads that read each key-value head; 0 if no head is left."""
        return self.n_heads // self.n_kv_heads if self.n_kv_heads else 0

    def count(self, what: Count, n_heads: int, n_kv_heads: int) -> int:
        """The number that is `what` with so many heads."""
        return {
            "heads": n_heads,
            "kv_heads": n_kv_heads,
            "queries_per_group": n_heads // n_kv_heads,
            "width": n_heads * self.head_dim,
        }[what]


@dataclass(frozen=True)
class BlockAnatomy:
    """The parts of one block; a part that was not recognised is None, and `unrecognised` says why."""

    block: str
    attention: Attention | None
    mlp: FeedForward | None
    unrecognised: Mapping[Sublayer, str] = field(default_factory=dict)


def part_linears(anatomy: BlockAnatomy) -> dict[Sublayer, tuple[str, ...]]:
    """The linears of each part of a block that is recognised and has units left."""
    parts: dict[Sublayer, tuple[str, ...]] = {}
    if anatomy.attention is not None and anatomy.attention.n_heads:
        slots = (*anatomy.attention.queries, *anatomy.attention.keys_values)
        parts[Sublayer.ATTENTION] = tuple(dict.fromkeys(slot.linear for slot in slots))
    if anatomy.mlp is not None and anatomy.mlp.n_channels:
        parts[Sublayer.MLP] = tuple(dict.fromkeys(slot.linear for slot in anatomy.mlp.channels))
    return parts
