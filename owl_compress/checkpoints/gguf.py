"""Weights out of a GGUF file, which are dequantised as they are read."""

from pathlib import Path
from typing import Any, ClassVar

import torch

from owl_compress.checkpoints.gguf_account import check_readable, check_tensors, fit_config_, notes_on_keys
from owl_compress.checkpoints.gguf_file import GgufFile, read_gguf
from owl_compress.checkpoints.gguf_rope import check_turned_by
from owl_compress.checkpoints.hub import quiet_bars
from owl_compress.checkpoints.reading import CheckpointSource, forget_quantization_


class Gguf:
    """Read only: what is loaded is an ordinary model, which saves as an ordinary checkpoint."""

    name: ClassVar[str] = "gguf"

    def recognise(self, source: CheckpointSource) -> bool:
        """A file of that kind was named."""
        return source.gguf is not None

    def check_loadable(self, source: CheckpointSource) -> None:
        """Refuse a file that is cut off, or no whole model; see `check_readable`."""
        check_readable(_file(source))

    def load(self, source: CheckpointSource) -> Any:
        """The model with dequantised weights, in float32 unless another type is asked for.

        Raises:
            RequestError: the file says something that would be lost.
        """
        file = _file(source)
        rope = fit_config_(source.config, file)
        source.notes.extend(notes_on_keys(source.config, file))
        check_tensors(source.config, file)
        with quiet_bars():
            model = source.from_pretrained(dtype=torch.float32 if source.dtype == "auto" else None)
        if rope is not None:
            check_turned_by(model, rope, file)
        forget_quantization_(model)
        return model


def _file(source: CheckpointSource) -> GgufFile:
    return read_gguf(Path(source.where) / str(source.gguf))
