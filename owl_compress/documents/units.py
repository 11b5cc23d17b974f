"""What a budget counts, the values that it may have, and the whole numbers that it stands for."""

from enum import StrEnum
from math import floor
from typing import Annotated

from pydantic import AfterValidator, Field

from owl_compress.documents.document import Frozen
from owl_compress.documents.strict_json import has_surrogates

BIT_WIDTHS = range(2, 9)
"""The widths that a weight can be quantized to, in bits."""

BIT_WIDTHS_SHOWN = f"a whole number from {BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}"
"""The same in words."""


MAX_WEIGHTS = 2**40
"""More weights than one matrix has; sums over a model of such matrices still fit 64 bits."""

WeightCount = Annotated[int, Field(gt=0, le=MAX_WEIGHTS)]
"""Weights of one matrix."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
"""How many there are of something; 64 bits hold it."""

PositiveCount = Annotated[int, Field(gt=0, lt=2**63)]
"""The same, of something that there is."""

_MAX_KEPT_OF = 2**16


def checked_text(text: str) -> str:
    """`text`, which a file in UTF-8 can hold.

    Raises:
        ValueError: it has halves of surrogate pairs, as the name of a file that is no UTF-8 has.
    """
    if has_surrogates(text):
        raise ValueError("is no UTF-8 text: rename the file, or write the name in UTF-8")
    return text


Name = Annotated[str, AfterValidator(checked_text)]
"""A name or path that can be written into a file and read again."""


class Sublayer(StrEnum):
    """The two sublayers of a block."""

    ATTENTION = "attention"
    MLP = "mlp"


MAX_STORED_BITS = 64
"""More than a weight has in any type."""


class Unit(StrEnum):
    """What a budget counts."""

    DENSITY = "density"  # share of the weights kept, 0..1
    WIDTH = "width"  # share of the removable parameters (heads, FFN channels) kept, 0..1
    BITS = "bits"  # bits per weight


class KeptOfGrid(Frozen):
    """N:M sparsity: a density is a whole number of weights *kept* of every `kept_of` consecutive inputs."""

    kept_of: int = Field(gt=0, le=_MAX_KEPT_OF)

    def values(self) -> tuple[float, ...]:
        """All densities on the grid, rising."""
        return tuple(kept / self.kept_of for kept in range(self.kept_of + 1))

    def shown(self, density: float) -> str:
        """A density, or a mean of several, as people write it: "3:8"."""
        return f"{density * self.kept_of:.4g}:{self.kept_of}"

    def kept(self, density: float) -> int:
        """N of the N:M that a density on the grid stands for."""
        return round(density * self.kept_of)


class BitsGrid(Frozen):
    """Quantization: a budget is one of these widths."""

    bits: tuple[Annotated[int, Field(gt=0, le=MAX_STORED_BITS)], ...] = Field(min_length=1)

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
