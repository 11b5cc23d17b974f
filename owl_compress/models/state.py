"""What any model can be asked, and the states it is put in for a while."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from owl_compress.device import free_device_bytes
from owl_compress.documents.provenance import ModelIdentity
from owl_compress.errors import RequestError
from owl_compress.models.residence import is_streamed, residence_of
from owl_compress.models.structure import BlockSite, ModelStructure


def n_parameters(model: nn.Module) -> int:
    """Number of parameters; those tied or shared count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def identify(model: nn.Module, structure: ModelStructure, source: str | None = None) -> ModelIdentity:
    """Identity of a model that is in memory already."""
    config = getattr(model, "config", None)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return ModelIdentity(
        id=source or str(getattr(config, "_name_or_path", "") or type(model).__name__),
        revision=getattr(config, "_commit_hash", None),
        family=structure.family,
        dtype=dtype,
    )


def cache_name(model: nn.Module) -> str:
    """What the model calls its key-value cache, in arguments and answers: transformers renamed it in 5.24."""
    return "cache" if "cache" in signature(type(model).forward).parameters else "past_key_values"


def check_finite(model: nn.Module) -> None:
    """Refuse a model that is broken before anything is done to it.

    Parameters on the meta device hold nothing and pass.

    Raises:
        RequestError: a parameter holds NaN or Inf; the first such is named.
    """
    for name, parameter in model.named_parameters():
        check_weight(name, parameter)


def check_weight(name: str, weight: Tensor) -> None:
    """Refuse one weight that is broken; see `check_finite`.

    Raises:
        RequestError: it holds NaN or Inf.
    """
    # torch has no extremes of 8-bit numbers.
    if weight.element_size() == 1 or not weight.is_floating_point() or weight.is_meta:
        return
    if not is_finite(weight):
        raise RequestError(f"{name} holds NaN or Inf: the checkpoint is broken, fetch it again")


def is_finite(tensor: Tensor) -> bool:
    """Whether no element of a tensor of floats is NaN or Inf: read once, and nothing of its size is made."""
    if not tensor.numel():
        return True
    extremes = torch.aminmax(tensor.detach())  # they are NaN if any element is
    return bool(torch.isfinite(extremes.min) & torch.isfinite(extremes.max))


def parameter_device(module: nn.Module) -> torch.device:
    """The device that the module's parameters live on; of those that are elsewhere nothing is said."""
    parameters = list(module.parameters())
    return next((one for one in parameters if not one.is_meta), parameters[0]).device


@contextmanager
def on_device(
    module: nn.Module, device: torch.device, fetched: dict[str, Tensor] | None = None
) -> Iterator[None]:
    """Move a module to `device`, and back to where it was after the block; or have its weights come there.

    Those that were `fetched` there already, by `residence.fetch`, are taken out of it.
    """
    residence = residence_of(module)
    if residence is not None:
        with residence.present(device, fetched):
            yield
        return
    home = parameter_device(module)
    if fetched:
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            tensor.data = fetched.pop(name)
    module.to(device)
    try:
        yield
    finally:
        module.to(home)


@contextmanager
def rest_on_device(model: nn.Module, blocks: Sequence[BlockSite], device: torch.device) -> Iterator[None]:
    """Move what lies outside the blocks of `model` to `device`, and back to where it was after the block."""
    inside = {id(module) for site in blocks for module in site.module.modules()}
    rest = [module for module in model.modules() if id(module) not in inside]
    parameters = [(one, one.data) for module in rest for one in module.parameters(recurse=False)]
    buffers = [(module, name, one) for module in rest for name, one in module.named_buffers(recurse=False)]
    try:
        for parameter, data in parameters:
            parameter.data = data.to(device)
        for module, name, buffer in buffers:
            module._buffers[name] = buffer.to(device)  # noqa: SLF001 - there is no other way to set one
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for module, name, buffer in buffers:
            module._buffers[name] = buffer  # noqa: SLF001


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


@contextmanager
def activations_recomputed(model: Any) -> Iterator[None]:
    """Have a model of transformers compute activations again on the way back, inside the block: less memory.

    It does so in training mode alone.

    Raises:
        RequestError: its class cannot.
    """
    # transformers renamed it in 5.24, and warns of the old name.
    activation = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    try:
        getattr(model, f"{activation}_checkpointing_enable")({"use_reentrant": False})
    except (AttributeError, ValueError) as error:
        raise RequestError(
            f"{type(model).__name__} cannot compute activations twice: drop --checkpointing"
        ) from error
    try:
        yield
    finally:
        getattr(model, f"{activation}_checkpointing_disable")()


def _configs(model: nn.Module) -> list[Any]:
    """The model's configuration, if it has one, and for multimodal models that of its language part."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return [config] if text is config else [config, text]


_HEADROOM = 0.6
"""Share of the free device memory that weights may take; activations and statistics need the rest."""


def place_(model: nn.Module, device: torch.device, *, must: bool = False) -> None:
    """Move `model` to `device` if its weights fit there with room to work; else it stays where it is.

    A model on the host is visited block by block and needs one block on the device at a time.

    Raises:
        RequestError: it does not fit, and it `must` be there.
    """
    if device.type != "cuda" or is_streamed(model):
        return
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    free = free_device_bytes(device)
    if size < _HEADROOM * free:
        model.to(device)
    elif must:
        raise RequestError(
            f"the weights take {size:,} bytes, and {device} has {free:,} left, of which they may take "
            f"{_HEADROOM:.0%}: use --offload host"
        )
