"""Where numbers come from: which model, which tokens, which versions."""

from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from owl_compress.documents.document import Frozen
from owl_compress.documents.units import Name, PositiveCount

StatisticsSource = Literal["dense", "sequential", "true-sequential"]
"""Whose inputs a backend is told of: the dense model's, or each block's behind those compressed before it."""


class ModelIdentity(Frozen):
    """Which model was measured or compressed."""

    id: Name
    revision: Name | None
    family: str
    dtype: str


class CalibrationRecord(Frozen):
    """Which tokens were used: enough to tell whether two runs saw the same.

    `drawn_from` tells that random windows were drawn from random sections of a long text, where by default
    they are from all of it; `chat_template` that conversations were written by the tokenizer's template.
    Both are absent from a file where they are None.
    """

    source: Name
    token_ids_sha256: str
    sequences: PositiveCount
    seq_len: PositiveCount
    sampling: Literal["first", "random"]
    seed: int
    bos: Literal["every", "first", "never"]
    drawn_from: Literal["sections"] | None = None
    chat_template: Literal[True] | None = None

    @model_serializer(mode="wrap")
    def _without_defaults(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        absent = {name for name in ("drawn_from", "chat_template") if getattr(self, name) is None}
        return {name: value for name, value in plain(self).items() if name not in absent}


class Provenance(Frozen):
    """Where the numbers come from. Holds no time stamps, so that the same request gives the same bytes."""

    calibration: CalibrationRecord | None
    versions: dict[str, str]


class Origin(Frozen):
    """Where a model descends from: its id on the hub and its licence, each None where not known.

    Name and link are of a licence that the hub has no name for, and calls `other`.
    """

    base_model: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
