"""What a budget counts, the values that it may have, and the whole numbers that it stands for."""

from enum import StrEnum
from math import floor

from pydantic import Field, PositiveInt

from owl_compress.documents.document import Frozen

BIT_WIDTHS = range(2, 9)
"""The widths that a weight can be quantized to, in bits."""

BIT_WIDTHS_SHOWN = f"a whole number from {BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}"
"""The same in words."""


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

    def kept(self, density: float) -> int:
        """N of the N:M that a density on the grid stands for."""
        return round(density * self.kept_of)


class BitsGrid(Frozen):
    """Quantization: a budget is one of these widths."""

    bits: tuple[PositiveInt, ...] = Field(min_length=1)

    def values(self) -> tuple[float, ...]:
        """All widths on the grid, rising."""
        return tuple(float(width) for width in sorted(set(self.bits)))


Grid = KeptOfGrid | BitsGrid


def kept_weights(density: float, n_weights: int) -> int:
    """Weights that a density off a grid keeps: never more than their share."""
    return floor(density * n_weights)


def is_bit_width(bits: float) -> bool:
    """Whether a weight can be quantized to so many bits."""
    return float(bits).is_integer() and int(bits) in BIT_WIDTHS
