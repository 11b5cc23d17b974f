"""Recovery: the short training that a compressed model had, as result.json records it."""

from typing import Literal

from pydantic import Field, JsonValue

from owl_compress.documents.document import Frozen, is_none
from owl_compress.documents.measurements import PerplexityRecord
from owl_compress.documents.provenance import CalibrationRecord
from owl_compress.documents.units import Count, PositiveCount

LossName = Literal["lm", "distill"]
"""What is learned from: the next token of the text, or what the dense model predicts of it."""


class RecoveryRecord(Frozen):
    """One training of a compressed model, and what it was worth.

    `before` and `after` are of the same held-out windows. `losses` are means over tenths of the training, in
    nats for each predicted token.
    """

    method: str
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    loss: LossName
    teacher: str | None = Field(default=None, exclude_if=is_none, description="the dense model of 'distill'")
    text: CalibrationRecord
    tokens: PositiveCount = Field(description="that were trained on; windows of a short text several times")
    steps: PositiveCount
    sequences_per_step: PositiveCount
    learning_rate: float
    warm_up: float = Field(description="share of the steps in which the learning rate rises")
    seed: int
    trained_parameters: PositiveCount
    adapter: str | None = Field(
        default=None, exclude_if=is_none, description="folder beside the weights that holds what was learned"
    )
    before: PerplexityRecord
    after: PerplexityRecord
    losses: tuple[float, ...]
    seconds: float = Field(description="of the training alone; of all attempts, where it was resumed")
    tokens_per_second: float
    processes: PositiveCount = 1
    peak_device_bytes: Count
    peak_host_bytes: Count
    versions: dict[str, str]
