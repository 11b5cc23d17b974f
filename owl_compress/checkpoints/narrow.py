"""Checkpoints of narrowed models: plain tensors, and what builds their blocks.

Such a checkpoint loads in three ways: through `load_model` with the classes of this package, through plain
transformers with trust_remote_code, which runs the modelling file, and not at all without either.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from owl_compress.checkpoints.narrow_config import (
    as_if_cut_in_memory_,
    check_savable,
    describe_narrowed,
)
from owl_compress.checkpoints.narrow_widths import check_runs, is_narrow, narrowed_class
from owl_compress.checkpoints.reading import CheckpointSource
from owl_compress.checkpoints.saving import PackedCheckpoint, write_weights
from owl_compress.checkpoints.stored_size import Sizer, sizer_of_weights
from owl_compress.checkpoints.streaming import Located, streamed_model
from owl_compress.checkpoints.verification import count_groups
from owl_compress.documents.measurements import Verification
from owl_compress.documents.stored_format import LM_EVAL, LOAD, NO_VLLM, StoredFormat, running_code
from owl_compress.documents.units import Unit
from owl_compress.forms.codes import CodeFormat
from owl_compress.forms.narrowing import has_narrowed_blocks
from owl_compress.models.structure import ModelStructure

LOAD_NARROW = (
    running_code(LOAD)
    + "\n\n`trust_remote_code=True` runs `modeling_narrow.py` from this folder: stock model classes have one "
    "width for all blocks. With owl-compress installed, `owl_compress.load(folder)` runs no code from here."
)


def stream_narrow(source: CheckpointSource, located: Located = lambda _, stored: stored) -> Any:
    """The same with blocks that stay in its files; `located` as for `streamed_model`.

    Raises:
        RequestError: see there, `narrowed_class` and `check_runs`.
    """
    narrow = narrowed_class(source.config, source.named)
    model = streamed_model(source, narrow, located)
    check_runs(narrow, source.config, source.named)
    as_if_cut_in_memory_(model)
    return model


def load_narrow(source: CheckpointSource) -> Any:
    """The model as it was cut in memory, built from our own classes.

    Raises:
        RequestError: see `narrowed_class` and `check_runs`.
    """
    narrow = narrowed_class(source.config, source.named)
    model = source.from_pretrained(narrow, runs_code=False)
    check_runs(narrow, source.config, source.named)  # the files agree with the widths, the heads may not
    as_if_cut_in_memory_(model)
    return model


def save_narrow(
    model: Any, folder: Path, *, max_shard_size: str, packed: PackedCheckpoint | None = None
) -> None:
    """Write tensors, widths and the modelling file.

    Raises:
        RequestError: see `check_savable`; nothing is written then.
    """
    check_savable(model)
    write_weights(model, folder, packed=packed, original_names=False, max_shard_size=max_shard_size)
    describe_narrowed(model, folder)


class Narrow:
    """Blocks of different widths, with a modelling file that builds them."""

    name: ClassVar[str] = "narrow"
    option_defaults: ClassVar[Mapping[str, Any]] = {}
    is_asked_for: ClassVar[bool] = False
    holds_codes: ClassVar[bool] = False

    def recognise(self, source: CheckpointSource) -> bool:
        """By the widths in its configuration."""
        return is_narrow(source.described)

    def check_loadable(self, source: CheckpointSource) -> None:
        """Nothing can be told beforehand."""

    def load(self, source: CheckpointSource) -> Any:
        """See `load_narrow`."""
        return load_narrow(source)

    def load_streamed(self, source: CheckpointSource) -> Any:
        """See `stream_narrow`."""
        return stream_narrow(source)

    def suits(self, model: Any, *, wants_codes: bool) -> bool:
        """Where blocks have lost heads or channels."""
        return not wants_codes and has_narrowed_blocks(model)

    def check_request(self, unit: Unit, parts: Sequence[str], options: Mapping[str, Any]) -> None:
        """It holds everything."""

    def check_holds(self, model: Any, structure: ModelStructure, code_format: CodeFormat | None) -> None:
        """It holds everything."""

    def save(self, model: Any, folder: Path, *, max_shard_size: str) -> tuple[str, ...]:
        """See `save_narrow`."""
        save_narrow(model, folder, max_shard_size=max_shard_size)
        return ()

    def sizer(self, model: Any, names: Sequence[str], code_format: CodeFormat | None) -> Sizer:  # noqa: ARG002
        """All weights as they are, whatever stands for them in memory."""
        return sizer_of_weights(model, original_names=False)

    def describe(self) -> StoredFormat:
        """What builds the blocks, and how to load without running that."""
        return StoredFormat(
            tag="",
            description="The blocks differ in width, which `modeling_narrow.py` beside the weights builds",
            how_to_load=LOAD_NARROW,
            vllm=NO_VLLM,
            lm_eval=running_code(LM_EVAL),
        )

    def verify(self, source: CheckpointSource, pattern: str) -> Verification:
        """Count the zeros of every linear at its own width."""
        with torch.device("meta"):
            model = narrowed_class(source.config, source.named)(source.config)
        return count_groups(Path(source.where), model, pattern)
