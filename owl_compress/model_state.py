"""What any model can be asked, and the states it is put in for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from owl_compress.errors import RequestError


def n_parameters(model: nn.Module) -> int:
    """Number of parameters; those tied or shared count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def check_finite(model: nn.Module) -> None:
    """Refuse a model that is broken before anything is done to it.

    Raises:
        RequestError: a parameter holds NaN or Inf; the first such is named.
    """
    for name, parameter in model.named_parameters():
        # torch has no extremes of 8-bit numbers.
        if parameter.element_size() == 1 or not parameter.is_floating_point() or not parameter.numel():
            continue
        extremes = torch.aminmax(parameter.detach())  # they are NaN if any element is
        if not bool(torch.isfinite(extremes.min) & torch.isfinite(extremes.max)):
            raise RequestError(f"{name} holds NaN or Inf: the checkpoint is broken, fetch it again")


def parameter_device(module: nn.Module) -> torch.device:
    """The device that the module's parameters live on."""
    return next(module.parameters()).device


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout and the key-value cache off inside the block; all modes come back after it."""
    training = [module for module in model.modules() if module.training]
    caching = [(config, config.use_cache) for config in _configs(model) if hasattr(config, "use_cache")]
    model.eval()
    for config, _ in caching:
        config.use_cache = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for config, use_cache in caching:
            config.use_cache = use_cache


def _configs(model: nn.Module) -> list[Any]:
    """The model's configuration, if it has one, and for multimodal models that of its language part."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return [config] if text is config else [config, text]
