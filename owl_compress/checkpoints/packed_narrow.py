"""Blocks of different widths whose weights are stored as codes: both of `narrow` and `packed`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from owl_compress.checkpoints.narrow import LOAD_NARROW, Narrow, load_narrow, save_narrow, stream_narrow
from owl_compress.checkpoints.narrow_widths import is_narrow, narrowed_class
from owl_compress.checkpoints.packed import (
    Packed,
    check_packable,
    check_packed_source,
    compare_packed,
    packed_checkpoint,
)
from owl_compress.checkpoints.packed_description import is_packed
from owl_compress.checkpoints.packed_loading import load_packed, stream_packed
from owl_compress.checkpoints.packed_size import packed_sizer
from owl_compress.checkpoints.reading import CheckpointSource
from owl_compress.checkpoints.stored_size import Sizer, sizer_of_weights
from owl_compress.documents.measurements import Verification
from owl_compress.documents.stored_format import LOAD, StoredFormat
from owl_compress.documents.units import Unit
from owl_compress.forms.codes import CodeFormat
from owl_compress.forms.narrowing import has_narrowed_blocks
from owl_compress.models.structure import ModelStructure


class PackedNarrow:
    """A modelling file that builds the blocks, and codes for their weights."""

    name: ClassVar[str] = "packed-narrow"
    option_defaults: ClassVar[Mapping[str, Any]] = {}
    is_asked_for: ClassVar[bool] = False
    holds_codes: ClassVar[bool] = True

    def recognise(self, source: CheckpointSource) -> bool:
        """By both marks in its configuration."""
        return is_narrow(source.described) and is_packed(source.described)

    def check_loadable(self, source: CheckpointSource) -> None:
        """See `check_packed_source`."""
        check_packed_source(source)

    def load(self, source: CheckpointSource) -> Any:
        """The model as it was cut in memory, with ordinary linears."""
        return load_packed(source, partial(load_narrow, source))

    def load_streamed(self, source: CheckpointSource) -> Any:
        """The same with blocks that stay in its files.

        Raises:
            RequestError: see `streaming.streamed_model`.
        """
        return stream_packed(source, partial(stream_narrow, source))

    def suits(self, model: Any, *, wants_codes: bool) -> bool:
        """Where blocks have lost heads or channels, and codes are to be kept."""
        return wants_codes and has_narrowed_blocks(model)

    def check_request(self, unit: Unit, parts: Sequence[str], options: Mapping[str, Any]) -> None:
        """It holds all that makes codes."""

    def check_holds(self, model: Any, structure: ModelStructure, code_format: CodeFormat | None) -> None:
        """As of packed weights."""
        Packed().check_holds(model, structure, code_format)

    def save(self, model: Any, folder: Path, *, max_shard_size: str) -> tuple[str, ...]:
        """See `save_narrow`."""
        packed = packed_checkpoint(model)
        save_narrow(model, folder, packed=packed, max_shard_size=max_shard_size)
        return packed.notes

    def sizer(self, model: Any, names: Sequence[str], code_format: CodeFormat | None) -> Sizer:
        """As of packed weights, by the model's own names."""
        if code_format is None:
            return sizer_of_weights(model, original_names=False)
        fit = check_packable(model, names, code_format)
        return packed_sizer(model, fit, code_format, original_names=False)

    def describe(self) -> StoredFormat:
        """As of packed weights, loaded as narrow ones are."""
        packed = Packed().describe()
        narrow = Narrow().describe()
        how_to_load = packed.how_to_load.replace(LOAD, LOAD_NARROW)
        return replace(packed, how_to_load=how_to_load, vllm=narrow.vllm, lm_eval=narrow.lm_eval)

    def verify(self, source: CheckpointSource, pattern: str) -> Verification:
        """Compare the bits of the stored codes with the plan, each linear at its own width."""
        with torch.device("meta"):
            model = narrowed_class(source.config, source.named)(source.config)
        return compare_packed(source, model, pattern)
