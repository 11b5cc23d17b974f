"""What `--allocator auto` tried: every candidate, how far it came, and why one was taken."""

from typing import ClassVar, Literal, Self

from pydantic import Field, JsonValue, model_validator

from owl_compress.documents.document import Document, Frozen
from owl_compress.documents.provenance import CalibrationRecord, ModelIdentity
from owl_compress.documents.report import Metric
from owl_compress.documents.result import MethodRecord
from owl_compress.documents.units import Count, Grid, PositiveCount, Unit

Fate = Literal["chosen", "baseline", "beaten", "same", "refused"]
"""What became of a candidate: taken, equal shares that were not, less good, another's plan, or no plan."""


class TuningRound(Frozen):
    """One round: all plans that are still in are carried out and judged on text that no other round saw."""

    plans: PositiveCount
    statistics_windows: Count = Field(description="that the backend sees; 0 if it reads no text")
    judging_windows: PositiveCount


class TriedCandidate(Frozen):
    """An allocator with its options, and how far its plan came."""

    name: str = Field(description="allocator and options in words; unique")
    allocator: str
    options: dict[str, JsonValue] = Field(default_factory=dict, description="as users give them")
    fate: Fate
    damage: tuple[Metric | None, ...] = Field(
        default=(), description="of each round that it was in, in nats; None where it is no number"
    )
    same_as: str | None = Field(default=None, description="whose plan it gave")
    reason: str | None = Field(default=None, description="why there is no plan, or it cannot be carried out")


class BesideBaseline(Frozen):
    """The best plan beside equal shares, on the windows of the last round, in nats."""

    damage: Metric
    baseline_damage: Metric
    gain: float = Field(description="mean over windows of the damage that the best plan avoids")
    standard_error: float = Field(ge=0, description="of the gain")
    needed: float = Field(description="standard errors from which on a gain is more than chance")
    is_beyond_chance: bool


class TuningDocument(Document):
    """A search among plans of equal budget; the plan that it ended with lies beside it."""

    SCHEMA: ClassVar[str] = "owl-compress/tuning/1"

    schema_: Literal["owl-compress/tuning/1"] = Field(default="owl-compress/tuning/1", alias="schema")
    model: ModelIdentity
    backend: MethodRecord
    unit: Unit
    target: float = Field(description="average that was asked for, in the unit")
    grid: Grid | None = None
    statistics: CalibrationRecord | None = Field(description="text that the backend saw in the last round")
    judging: CalibrationRecord = Field(description="text that plans were judged on, all rounds together")
    positions: PositiveCount = Field(description="compared in each round")
    rounds: tuple[TuningRound, ...]
    candidates: tuple[TriedCandidate, ...] = Field(min_length=1)
    baseline: str = Field(description="what equal shares are at this budget, in words")
    comparison: BesideBaseline | None = Field(description="None where equal shares cannot be carried out")
    why: str
    forward_tokens: float = Field(
        ge=0, description="cost: tokens that went through the whole model, or as much"
    )
    plan: str = Field(description="fingerprint of the plan")
    versions: dict[str, str]

    @model_validator(mode="after")
    def _has_one_choice(self) -> Self:
        names = [one.name for one in self.candidates]
        if len(set(names)) != len(names):
            raise ValueError("a candidate is listed twice")
        if [one.fate for one in self.candidates].count("chosen") != 1:
            raise ValueError("exactly one candidate is the chosen one")
        return self

    @property
    def chosen(self) -> TriedCandidate:
        """Whose plan was taken."""
        return next(one for one in self.candidates if one.fate == "chosen")
