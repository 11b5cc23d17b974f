"""The sensitivity profile: what compressing one part of a model alone does to the whole of it.

Everything else stays dense while one part is compressed to one level, and the damage to the model's output is
measured. Parts are damaged independently of each other here; how nearly damages add up is for whoever carries
a plan out to say.
"""

from collections.abc import Mapping
from enum import StrEnum
from itertools import pairwise
from math import prod
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from owl_compress.documents.coverage import Coverage
from owl_compress.documents.document import Document, Frozen, is_none
from owl_compress.documents.provenance import CalibrationRecord, ModelIdentity
from owl_compress.documents.report import Metric
from owl_compress.documents.result import MethodRecord
from owl_compress.documents.units import (
    BIT_WIDTHS_SHOWN,
    KeptOfGrid,
    PositiveCount,
    Unit,
    WeightCount,
    is_bit_width,
)


class PartKind(StrEnum):
    """What is compressed at a time; every part lies within one block."""

    BLOCK = "block"
    SUBLAYER = "sublayer"  # attention or feed-forward
    TIED = "tied"  # linears that servers fuse: q/k/v, gate/up; every other by itself
    ROLE = "role"  # linears of one role: several where a block has experts
    LINEAR = "linear"


class Measure(StrEnum):
    """What damage counts; see `owl_compress.importance.damage` for the formulas."""

    KL = "kl"
    LOSS = "loss"
    OUTPUT_ERROR = "output-error"
    FISHER = "fisher"


class ProfiledLinear(Frozen):
    """A linear of the model, whether or not it is in a part that was measured."""

    name: str
    block: str
    role: str
    shape: tuple[WeightCount, WeightCount]

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return prod(self.shape)


class PartDamage(Frozen):
    """One part at several levels: `damage` is as it was measured, which noise may have made not monotone.

    A level is what was counted in the compressed tensors, in the unit of the profile, so that a plan may ask
    for exactly that; `asked` has what was asked for instead, if anything. In density and width the part as it
    is (level 1) is always there, with no damage.
    """

    name: str
    kind: PartKind
    block: str
    linears: tuple[str, ...] = Field(min_length=1)
    n_weights: WeightCount
    levels: tuple[float, ...] = Field(min_length=1, description="rising; a larger one keeps more")
    damage: tuple[Metric, ...] = Field(description="at each of the levels")
    asked: tuple[Metric, ...] | None = Field(
        default=None,
        exclude_if=is_none,
        description="levels that were asked for, rising, where whole units made others of them",
    )

    @model_validator(mode="after")
    def _is_a_curve(self) -> Self:
        if len(self.levels) != len(self.damage):
            raise ValueError(f"{self.name} has {len(self.levels)} levels and {len(self.damage)} damages")
        if any(a >= b for a, b in pairwise(self.levels)):
            raise ValueError(f"the levels of {self.name} do not rise")
        return self

    @property
    def known(self) -> frozenset[float]:
        """The levels that need not be measured: asked for again, they come to those that are there."""
        return frozenset((*self.levels, *(self.asked or ())))


class SensitivityProfile(Document):
    """Damage of the parts of one model at several levels of one backend, in the order of execution."""

    SCHEMA: ClassVar[str] = "owl-compress/sensitivity/1"

    schema_: Literal["owl-compress/sensitivity/1"] = Field(
        default="owl-compress/sensitivity/1", alias="schema"
    )
    model: ModelIdentity
    unit: Unit
    grid: KeptOfGrid | None = Field(
        default=None, description="the M of N:M that the levels are of; None for bits and off a grid"
    )
    backend: MethodRecord
    measure: Measure
    positions: PositiveCount | None = Field(
        default=None,
        exclude_if=is_none,
        description="compared, by a measure of the output; None if not known",
    )
    linears: tuple[ProfiledLinear, ...] = Field(min_length=1, description="all linears of the model")
    parts: tuple[PartDamage, ...] = Field(min_length=1)
    statistics: CalibrationRecord | None = Field(
        description="text that the backend saw; None if it reads none"
    )
    damage_text: CalibrationRecord = Field(description="text that damage was measured on, held apart")
    forward_tokens: float = Field(
        ge=0, description="cost: tokens that went through the whole model, or as much"
    )
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    coverage: Coverage | None = Field(default=None, exclude_if=is_none)

    @model_validator(mode="after")
    def _parts_are_of_the_model(self) -> Self:
        known = {linear.name: linear for linear in self.linears}
        if len(known) != len(self.linears):
            raise ValueError("a linear is listed twice")
        taken: set[str] = set()
        for part in self.parts:
            for name in part.linears:
                if name not in known:
                    raise ValueError(f"part {part.name} names linear {name!r}, which is not in the list")
                if name in taken:
                    raise ValueError(f"{name} is in two parts")
                if known[name].block != part.block:
                    raise ValueError(f"{name} is not of {part.block}, the block of part {part.name}")
                taken.add(name)
            if part.n_weights != sum(known[name].n_weights for name in part.linears):
                raise ValueError(f"n_weights of part {part.name} is not the sum over its linears")
        return self

    @model_validator(mode="after")
    def _parts_have_names_and_levels_of_their_own(self) -> Self:
        names = [part.name for part in self.parts]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two parts have the name {twice!r}")
        for part in self.parts:
            off = next((level for level in part.levels if not self._is_level(level)), None)
            if off is not None:
                raise ValueError(f"{part.name} has level {off:g}, which is not {self._level_shown}")
        return self

    def _is_level(self, level: float) -> bool:
        """Whether a part can be brought to it, in the unit of the profile."""
        if self.unit is Unit.BITS:
            return is_bit_width(level)
        return level in self.grid.values() if self.grid is not None else 0 <= level <= 1

    @property
    def _level_shown(self) -> str:
        if self.unit is Unit.BITS:
            return f"{BIT_WIDTHS_SHOWN} bits"
        return f"of N:{self.grid.kept_of}" if self.grid is not None else "within 0 and 1"

    @property
    def blocks(self) -> tuple[str, ...]:
        """The names of the blocks, in their order."""
        return tuple(dict.fromkeys(linear.block for linear in self.linears))

    @property
    def measured_linears(self) -> frozenset[str]:
        """The names of those that are in a part."""
        return frozenset(name for part in self.parts for name in part.linears)

    @property
    def linear_sizes(self) -> Mapping[str, int]:
        """Number of weights by the name of the linear."""
        return {linear.name: linear.n_weights for linear in self.linears}
