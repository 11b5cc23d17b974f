"""Where numbers come from: which model, which tokens, which versions."""

from typing import Literal

from pydantic import PositiveInt

from owl_compress.documents.document import Frozen


class ModelIdentity(Frozen):
    """Which model was measured or compressed."""

    id: str
    revision: str | None
    family: str
    dtype: str


class CalibrationRecord(Frozen):
    """Which tokens were used: enough to tell whether two runs saw the same."""

    source: str
    token_ids_sha256: str
    sequences: PositiveInt
    seq_len: PositiveInt
    sampling: Literal["first", "random"]
    seed: int
    bos: Literal["every", "first", "never"]


class Provenance(Frozen):
    """Where the numbers come from. Holds no time stamps, so that the same request gives the same bytes."""

    calibration: CalibrationRecord | None
    versions: dict[str, str]


class Origin(Frozen):
    """Where a model descends from: its id on the hub and its licence, each None where not known."""

    base_model: str | None = None
    license: str | None = None
