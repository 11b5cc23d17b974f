"""Cutting heads and channels out of a block in place: smaller dense matrices, nothing masked."""

from dataclasses import dataclass

from torch import Tensor

from owl_compress.anatomy import BlockAnatomy
from owl_compress.families import BlockSite


@dataclass(frozen=True)
class KeptUnits:
    """The units that stay, int64 indices in rising order; None leaves the part as it is.

    `heads` and `kv_heads` go together: every kept key-value head keeps the same number of query heads.
    """

    channels: Tensor | None = None
    heads: Tensor | None = None
    kv_heads: Tensor | None = None


def keep_units_(site: BlockSite, anatomy: BlockAnatomy, kept: KeptUnits) -> None:
    """Remove everything but `kept` from the block, in place: weights, biases, and the head counts it uses."""
    raise NotImplementedError(f"{site.name} {anatomy.block} {kept}")
