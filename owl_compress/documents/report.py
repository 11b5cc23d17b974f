"""The importance report: what `measure` writes and every allocator reads."""

from math import prod
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from owl_compress.documents.coverage import Coverage
from owl_compress.documents.document import Document, Frozen, is_none
from owl_compress.documents.provenance import ModelIdentity, Provenance
from owl_compress.documents.units import Count, WeightCount

Metric = Annotated[float, Field(ge=-1e100, le=1e100)]
"""Wider than any sum over float32 weights, and narrow enough for sums and products of such numbers."""

_MAX_BINS_PER_OCTAVE = 64
_OCTAVES = 1100
"""Doubles lie between 2 to the power of -1075 and 1024."""


class ScoreHistogram(Frozen):
    """Counts of the scores |W_ij| * ‖X_j‖ of one linear in bins of equal width on a log2 axis.

    Bin k covers [2^((first_bin + k) / bins_per_octave), 2^((first_bin + k + 1) / bins_per_octave)).
    Scores of exactly zero are in `n_zero`.
    """

    bins_per_octave: int = Field(gt=0, le=_MAX_BINS_PER_OCTAVE)
    first_bin: int
    counts: tuple[Count, ...]
    n_zero: Count

    @model_validator(mode="after")
    def _bins_are_of_floats(self) -> Self:
        widest = _OCTAVES * self.bins_per_octave
        end = self.first_bin + len(self.counts)
        if self.first_bin < -widest or end > widest:
            raise ValueError(f"bins {self.first_bin} to {end} lie outside the range of floats")
        return self

    @property
    def total(self) -> int:
        """Number of scores in the histogram."""
        return self.n_zero + sum(self.counts)


class LinearReport(Frozen):
    """Importance of one weight matrix, shape (out, in)."""

    name: str
    role: str
    shape: tuple[WeightCount, WeightCount]
    n_weights: WeightCount
    metrics: dict[str, Metric]
    score_histogram: ScoreHistogram | None = None

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.n_weights != prod(self.shape):
            raise ValueError(f"{self.name} has n_weights {self.n_weights} but shape {self.shape}")
        if self.score_histogram and self.score_histogram.total != self.n_weights:
            raise ValueError(f"the score histogram of {self.name} does not count {self.n_weights} scores")
        return self


class BlockReport(Frozen):
    """Importance of one transformer block: its own metrics, pooled over its linears, and those of each."""

    name: str
    n_weights: int
    metrics: dict[str, Metric]
    linears: tuple[LinearReport, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        total = sum(linear.n_weights for linear in self.linears)
        if self.n_weights != total:
            raise ValueError(f"{self.name} has n_weights {self.n_weights} but its linears add up to {total}")
        return self


class ImportanceReport(Document):
    """Importance of every block and linear of one model, in the order of execution."""

    SCHEMA: ClassVar[str] = "owl-compress/report/1"

    schema_: Literal["owl-compress/report/1"] = Field(default="owl-compress/report/1", alias="schema")
    model: ModelIdentity
    blocks: tuple[BlockReport, ...] = Field(min_length=1)
    provenance: Provenance
    notes: tuple[str, ...] = ()
    coverage: Coverage | None = Field(
        default=None,
        exclude_if=is_none,
        description="what of the weights in the blocks is in this account; None if not counted",
    )

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [linear.name for block in self.blocks for linear in block.linears]
        if len(set(names)) != len(names):
            raise ValueError("a linear is listed twice")
        if len({block.name for block in self.blocks}) != len(self.blocks):
            raise ValueError("a block is listed twice")
        return self

    @property
    def n_weights(self) -> int:
        """Number of weights in all linears of all blocks."""
        return sum(block.n_weights for block in self.blocks)
