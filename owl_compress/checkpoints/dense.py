"""Plain weights under their own names: what every other form is measured against."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import AutoModelForCausalLM

from owl_compress.checkpoints.door import from_config
from owl_compress.checkpoints.narrow_config import refuse_narrowed
from owl_compress.checkpoints.reading import CheckpointSource
from owl_compress.checkpoints.saving import write_weights
from owl_compress.checkpoints.stored_size import Sizer, sizer_of_weights
from owl_compress.checkpoints.streaming import streamed_model
from owl_compress.checkpoints.verification import count_groups
from owl_compress.documents.measurements import Verification
from owl_compress.documents.stored_format import LM_EVAL, LOAD, VLLM, StoredFormat
from owl_compress.documents.units import Unit
from owl_compress.forms.codes import CodeFormat
from owl_compress.forms.narrowing import has_narrowed_blocks
from owl_compress.models.structure import ModelStructure


class Dense:
    """Safetensors as transformers writes them. It takes whatever no other form does."""

    name: ClassVar[str] = "dense"
    option_defaults: ClassVar[Mapping[str, Any]] = {}
    is_asked_for: ClassVar[bool] = False
    holds_codes: ClassVar[bool] = False

    def recognise(self, source: CheckpointSource) -> bool:  # noqa: ARG002 - the protocol's signature
        """Always."""
        return True

    def check_loadable(self, source: CheckpointSource) -> None:
        """Nothing can be told beforehand."""

    def load(self, source: CheckpointSource) -> Any:
        """The model as transformers loads it."""
        return source.from_pretrained()

    def load_streamed(self, source: CheckpointSource) -> Any:
        """The same, with blocks that stay in its files.

        Raises:
            RequestError: see `streaming.streamed_model`.
        """
        return streamed_model(source)

    def suits(self, model: Any, *, wants_codes: bool) -> bool:
        """Where neither codes nor widths of single blocks are to be kept."""
        return not wants_codes and not has_narrowed_blocks(model)

    def check_request(self, unit: Unit, parts: Sequence[str], options: Mapping[str, Any]) -> None:
        """It holds everything."""

    def check_holds(self, model: Any, structure: ModelStructure, code_format: CodeFormat | None) -> None:
        """It holds everything."""

    def save(self, model: Any, folder: Path, *, max_shard_size: str) -> tuple[str, ...]:
        """All tensors as they are in memory.

        Raises:
            RequestError: blocks whose widths would be lost.
        """
        refuse_narrowed(model, "narrow")
        write_weights(model, folder, max_shard_size=max_shard_size)
        return ()

    def sizer(self, model: Any, names: Sequence[str], code_format: CodeFormat | None) -> Sizer:  # noqa: ARG002
        """All weights as they are, whatever stands for them in memory."""
        return sizer_of_weights(model)

    def describe(self) -> StoredFormat:
        """What matters of it to those who expect codes."""
        return StoredFormat(
            tag="",
            description="They are stored dequantised, like any other weight: the files are no smaller than "
            "before, and the bits per weight above are those of the codes, scales and all other tensors",
            how_to_load=LOAD,
            vllm=VLLM,
            lm_eval=LM_EVAL,
        )

    def verify(self, source: CheckpointSource, pattern: str) -> Verification:
        """Count the zeros of every linear of the model that the configuration describes."""
        with torch.device("meta"):
            model = from_config(AutoModelForCausalLM, source.config, trust_remote_code=source.trusts_code)
        return count_groups(Path(source.where), model, pattern)
