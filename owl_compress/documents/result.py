"""The result: what a compression really did, counted from the tensors."""

from typing import ClassVar, Literal

from pydantic import Field, JsonValue

from owl_compress.documents.accuracy import AccuracyChange
from owl_compress.documents.coverage import Coverage
from owl_compress.documents.document import Document, Frozen, is_none
from owl_compress.documents.measurements import DamageRecord, Evaluation, FootprintChange
from owl_compress.documents.provenance import CalibrationRecord, ModelIdentity, StatisticsSource
from owl_compress.documents.recovery import RecoveryRecord
from owl_compress.documents.units import Count, PositiveCount, Unit, WeightCount


class LinearResult(Frozen):
    """One linear: what was asked and what its saved tensor holds.

    `relative_error` is the squared output error divided by the squared output of the uncompressed linear,
    as far as the backend's statistics tell it; `Result.error_measure` says how.
    """

    name: str
    block: str
    unit: Unit
    asked: float
    achieved: float
    n_weights: WeightCount
    relative_error: float
    seconds: float


class Totals(Frozen):
    """The model as a whole. `asked` and `achieved` average over the compressed weights alone."""

    asked: float
    achieved: float
    n_weights: PositiveCount
    bits_per_weight: float = Field(description="whole model, scales, zeros and embeddings included")
    bytes_on_disk: Count | None = Field(
        description="of the weight files; None while the model is only in memory"
    )
    n_params_before: Count
    n_params_after: Count


class Fallback(Frozen):
    """Something that did not go the first way, such as a raised damping."""

    what: str
    where: str
    count: Count = 1


class MethodRecord(Frozen):
    """Which backend ran, with all its parameters."""

    name: str
    parameters: dict[str, JsonValue] = Field(default_factory=dict)


class EarlierStep(Frozen):
    """A compression that the model had behind it when this one began."""

    model: str
    revision: str | None
    backend: str
    unit: Unit
    achieved: float
    n_params_before: Count
    n_params_after: Count
    plan: str


class Result(Document):
    """What one compression did."""

    SCHEMA: ClassVar[str] = "owl-compress/result/1"

    schema_: Literal["owl-compress/result/1"] = Field(default="owl-compress/result/1", alias="schema")
    model: ModelIdentity
    backend: MethodRecord
    error_measure: str
    totals: Totals
    footprint: FootprintChange | None = Field(
        default=None, description="where whole heads or channels went; None for budgets in other units"
    )
    evaluation: Evaluation | None = None
    tasks: AccuracyChange | None = Field(
        default=None, exclude_if=is_none, description="accuracy, where tasks were asked for"
    )
    fallbacks: tuple[Fallback, ...] = ()
    notes: tuple[str, ...] = ()
    earlier: tuple[EarlierStep, ...] = Field(
        default=(), description="oldest first; budgets are shares of the model as the last of them left it"
    )
    coverage: Coverage | None = Field(
        default=None,
        exclude_if=is_none,
        description="what of the weights in the blocks could get a budget; None if not counted",
    )
    calibration: CalibrationRecord | None
    statistics: StatisticsSource | None = Field(
        default=None,
        exclude_if=is_none,
        description="whose inputs the backend was told of; None if it asks for none, or gathers its own",
    )
    sensitivity: DamageRecord | None = Field(
        default=None, exclude_if=is_none, description="where budgets were made from damages"
    )
    recoveries: tuple[RecoveryRecord, ...] = Field(
        default=(), exclude_if=lambda value: not value, description="trainings since, oldest first"
    )
    seed: int
    wall_seconds: float
    peak_device_bytes: Count
    peak_host_bytes: Count
    versions: dict[str, str]
    report: str | None = Field(
        default=None, exclude_if=is_none, description="what the plan says that it was made from"
    )
    plan: str
    budgets: tuple[LinearResult, ...] = Field(min_length=1)

    @property
    def as_earlier(self) -> tuple[EarlierStep, ...]:
        """What the result of a further compression says of this one, and of those before it."""
        step = EarlierStep(
            model=self.model.id,
            revision=self.model.revision,
            backend=self.backend.name,
            unit=self.budgets[0].unit,
            achieved=self.totals.achieved,
            n_params_before=self.totals.n_params_before,
            n_params_after=self.totals.n_params_after,
            plan=self.plan,
        )
        return (*self.earlier, step)
