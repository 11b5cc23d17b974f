"""The importance report: what `measure` writes and every allocator reads."""

from math import prod
from typing import ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from owl_compress.documents.coverage import Coverage
from owl_compress.documents.document import Document, Frozen, is_none
from owl_compress.documents.provenance import ModelIdentity, Provenance


class ScoreHistogram(Frozen):
    """Counts of the scores |W_ij| * ‖X_j‖ of one linear in bins of equal width on a log2 axis.

    Bin k covers [2^((first_bin + k) / bins_per_octave), 2^((first_bin + k + 1) / bins_per_octave)).
    Scores of exactly zero are in `n_zero`.
    """

    bins_per_octave: PositiveInt
    first_bin: int
    counts: tuple[NonNegativeInt, ...]
    n_zero: NonNegativeInt

    @property
    def total(self) -> int:
        """Number of scores in the histogram."""
        return self.n_zero + sum(self.counts)


class LinearReport(Frozen):
    """Importance of one weight matrix, shape (out, in)."""

    name: str
    role: str
    shape: tuple[PositiveInt, PositiveInt]
    n_weights: PositiveInt
    metrics: dict[str, float]
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
    n_weights: PositiveInt
    metrics: dict[str, float]
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
