"""What a budget counts, and the values that it may have."""

from enum import StrEnum

from pydantic import Field, PositiveInt

from owl_compress.documents.document import Frozen

NARROWEST_BITS, WIDEST_BITS = 2, 8
"""The widths that a weight can be quantized to."""


class Sublayer(StrEnum):
    """The two sublayers of a block."""

    ATTENTION = "attention"
    MLP = "mlp"


class Unit(StrEnum):
    """What a budget counts."""

    DENSITY = "density"  # share of the weights kept, 0..1
    WIDTH = "width"  # share of the removable parameters (heads, FFN channels) kept, 0..1
    BITS = "bits"  # bits per weight


class KeptOfGrid(Frozen):
    """N:M sparsity: a density is a whole number of weights *kept* of every `kept_of` consecutive inputs."""

    kept_of: PositiveInt

    def values(self) -> tuple[float, ...]:
        """All densities on the grid, rising."""
        return tuple(kept / self.kept_of for kept in range(self.kept_of + 1))


class BitsGrid(Frozen):
    """Quantization: a budget is one of these widths."""

    bits: tuple[PositiveInt, ...] = Field(min_length=1)

    def values(self) -> tuple[float, ...]:
        """All widths on the grid, rising."""
        return tuple(float(width) for width in sorted(set(self.bits)))


Grid = KeptOfGrid | BitsGrid
