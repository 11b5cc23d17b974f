"""The cost table: what each part of a model's blocks takes in time, at several widths, on one machine.

It may be edited, or written by hand: points are joined by straight lines, and nothing is said of widths below
the narrowest.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from owl_compress.documents.document import Document, Frozen, is_none
from owl_compress.documents.measurements import LatencyShape
from owl_compress.documents.provenance import ModelIdentity
from owl_compress.documents.units import Sublayer, WeightCount

Phase = Literal["prefill", "decode"]
"""All prompts at once, or each token after them."""

_MOST_SECONDS = 1e9
"""More than anybody waits; sums of such times are finite."""


class PartSeconds(Frozen):
    """Seconds of a part: in the prefill, and in each decoded token."""

    prefill: float = Field(ge=0, le=_MOST_SECONDS)
    decode: float = Field(ge=0, le=_MOST_SECONDS)

    def of(self, phase: Phase) -> float:
        """Those of one phase."""
        return self.prefill if phase == "prefill" else self.decode


class WidthCost(Frozen):
    """One width of a part: the weights that its linears keep, and how many units these are."""

    n_weights: WeightCount
    seconds: PartSeconds
    heads: PositiveInt | None = Field(default=None, exclude_if=is_none)
    kv_heads: PositiveInt | None = Field(default=None, exclude_if=is_none)
    channels: PositiveInt | None = Field(default=None, exclude_if=is_none)


class PartCosts(Frozen):
    """What the attention, or the feed-forward, of each of these blocks takes; the last width is the whole."""

    part: Sublayer
    blocks: tuple[str, ...] = Field(min_length=1)
    widths: tuple[WidthCost, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _rises(self) -> Self:
        for narrow, wide in pairwise(self.widths):
            where = f"the {self.part} of {self.blocks[0]}"
            if wide.n_weights <= narrow.n_weights:
                raise ValueError(
                    f"widths of {where} have to rise, and {wide.n_weights} follows {narrow.n_weights}"
                )
            for phase in ("prefill", "decode"):
                less, more = narrow.seconds.of(phase), wide.seconds.of(phase)
                if more < less:
                    raise ValueError(
                        f"{phase} of {where} takes {less:g} s with {narrow.n_weights} weights and {more:g} s "
                        f"with {wide.n_weights}: time may not fall with width; measure again, or edit one"
                    )
        return self

    @property
    def least(self) -> int:
        """Weights of the narrowest width that was measured."""
        return self.widths[0].n_weights

    def seconds(self, phase: Phase, n_weights: float) -> float:
        """By straight lines between widths; as much as the narrowest below it, and nothing for no weight."""
        if n_weights <= 0:
            return 0.0
        first = self.widths[0]
        if n_weights <= first.n_weights:
            return first.seconds.of(phase)
        for narrow, wide in pairwise(self.widths):
            if n_weights <= wide.n_weights:
                share = (n_weights - narrow.n_weights) / (wide.n_weights - narrow.n_weights)
                less, more = narrow.seconds.of(phase), wide.seconds.of(phase)
                return less + share * (more - less)
        return self.widths[-1].seconds.of(phase)


class CostTable(Document):
    """Seconds of the parts of one model on one machine, and of everything else."""

    SCHEMA: ClassVar[str] = "owl-compress/costs/1"

    schema_: Literal["owl-compress/costs/1"] = Field(default="owl-compress/costs/1", alias="schema")
    model: ModelIdentity
    device: str
    threads: PositiveInt | None = Field(description="of a CPU")
    shape: LatencyShape
    runs: PositiveInt
    rest: PartSeconds = Field(description="of all that is in no part, whatever its width")
    parts: tuple[PartCosts, ...] = Field(min_length=1)
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_parts_once(self) -> Self:
        names = [(block, costs.part) for costs in self.parts for block in costs.blocks]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"the {twice[1]} of {twice[0]} is listed twice")
        if not self.seconds("prefill") > 0 < self.seconds("decode"):
            raise ValueError("the whole model takes no time")
        return self

    @property
    def by_part(self) -> Mapping[tuple[str, Sublayer], PartCosts]:
        """The costs of each part, by block and part."""
        return {(block, costs.part): costs for costs in self.parts for block in costs.blocks}

    def seconds(self, phase: Phase, kept: Mapping[tuple[str, Sublayer], float] | None = None) -> float:
        """Of the model whose parts keep so many weights; of the dense one for those that are not named."""
        kept = kept or {}
        return self.rest.of(phase) + sum(
            costs.seconds(phase, kept.get(part, costs.widths[-1].n_weights))
            for part, costs in self.by_part.items()
        )
