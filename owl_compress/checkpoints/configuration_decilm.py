"""The configuration of a DeciLM checkpoint: a Llama whose blocks have widths of their own.

This file stands alone: it needs transformers and nothing else, because a copy of it lies in exported
checkpoints, where `block_configs` of config.json is read through it as objects with attributes.
"""

from typing import Any

from transformers import LlamaConfig


class _Attributes(dict):  # type: ignore[type-arg]
    """A dict whose entries are attributes too; it stays one so that the configuration can be written."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class DeciLMConfig(LlamaConfig):  # type: ignore[misc]
    """A Llama's configuration with `block_configs`: for each block `attention` and `ffn`."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: Any = None, **options: Any) -> None:
        super().__init__(**options)
        self.block_configs = [
            _Attributes({part: _Attributes(values) for part, values in block.items()})
            for block in block_configs or ()
        ]
