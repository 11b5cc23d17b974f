"""Adapters (LoRA and its kin) that are woven into a live model."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from owl_compress.errors import RequestError

_PACKAGE = "peft"
_PARTS = ("lora_a", "lora_b")
"""How the two factors are called by whoever writes such modules without that package."""


def refuse_adapters(model: nn.Module) -> None:
    """Refuse a model whose linears are wrapped by an adapter.

    Its inner matrices would pass for linears of the model, and saving it would write the adapter alone.

    Raises:
        RequestError: there is one, named with its place.
    """
    for name, module in model.named_modules():
        is_adapter = type(module).__module__.partition(".")[0] == _PACKAGE
        if is_adapter or any(child.lower() in _PARTS for child in _children(module)):
            place = f"{name} is a {type(module).__name__}" if name else f"it is a {type(module).__name__}"
            raise RequestError(
                f"the model has an adapter woven in ({place}): merge it into the weights first, with peft "
                "model = model.merge_and_unload()"
            )


@contextmanager
def peft_kept_quiet() -> Iterator[None]:
    """Keep to itself what peft calls of transformers that will be gone one day."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _children(module: nn.Module) -> list[str]:
    """Names of the modules and parameters directly below `module`."""
    return [*vars(module)["_modules"], *vars(module)["_parameters"]]
