"""Weights out of a GGUF file, which are dequantised as they are read."""

from typing import Any, ClassVar

import torch

from owl_compress.checkpoints.hub import quiet_bars
from owl_compress.checkpoints.reading import CheckpointSource, forget_quantization_


class Gguf:
    """Read only: what is loaded is an ordinary model, which saves as an ordinary checkpoint."""

    name: ClassVar[str] = "gguf"

    def recognise(self, source: CheckpointSource) -> bool:
        """A file of that kind was named."""
        return source.gguf is not None

    def check_loadable(self, source: CheckpointSource) -> None:
        """Nothing can be told beforehand."""

    def load(self, source: CheckpointSource) -> Any:
        """The model with dequantised weights, in float32 unless another type is asked for."""
        with quiet_bars():
            model = source.from_pretrained(dtype=torch.float32 if source.dtype == "auto" else None)
        forget_quantization_(model)
        return model
