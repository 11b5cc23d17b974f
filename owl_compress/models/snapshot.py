"""A model put back as it was, after whatever was done to it in place: cheaper than loading it again."""

from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_HOST = torch.device("cpu")

_TABLES = ("_parameters", "_buffers", "_modules")
"""Of a module: who its tensors and inner modules are, by name."""


@dataclass(frozen=True)
class _Kept:
    """One tensor of the model: the object, and what it held, on the host."""

    tensor: Tensor
    content: Tensor


@dataclass(frozen=True)
class _State:
    """All attributes of one module; those that are tables or lists as copies, the rest as they are."""

    module: nn.Module
    kind: type
    attributes: dict[str, Any]


@dataclass(frozen=True)
class ModelSnapshot:
    """What a model was when it was taken: every tensor bit by bit, every module, attribute and setting.

    Tensors that are shared stay shared, and modules keep their identity, so that whoever knows the modules of
    the model (a `ModelStructure`) still does after `restore_`. Contents are on the host: as many bytes again
    as the model has.
    """

    states: tuple[_State, ...]
    tensors: tuple[_Kept, ...]
    config: Any

    @classmethod
    def of(cls, model: nn.Module) -> "ModelSnapshot":
        """Take a snapshot of `model` as it is."""
        states = tuple(_State(one, type(one), _attributes(one)) for one in model.modules())
        tensors: dict[int, Tensor] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            tensors.setdefault(id(tensor), tensor)
        kept = tuple(_Kept(one, one.detach().to(_HOST, copy=True)) for one in tensors.values())
        return cls(states, kept, deepcopy(getattr(model, "config", None)))

    @torch.no_grad()
    def restore_(self, model: nn.Module) -> None:
        """Make `model`, of which the snapshot is, what it was; tensors go back to the device they were on."""
        for state in self.states:
            vars(state.module).clear()
            vars(state.module).update(_copied(state.attributes))
            state.module.__class__ = state.kind
        for kept in self.tensors:
            tensor, content = kept.tensor, kept.content
            if tensor.shape == content.shape and tensor.dtype == content.dtype:
                tensor.data.copy_(content)
            else:
                tensor.data = content.to(tensor.device, copy=True)
        config: Any = getattr(model, "config", None)
        if config is not None:
            vars(config).clear()
            vars(config).update(vars(deepcopy(self.config)))


def _attributes(module: nn.Module) -> dict[str, Any]:
    return _copied(vars(module))


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes with tables and lists of their own, whose members are the same."""
    return {
        name: copy(value) if name in _TABLES or isinstance(value, dict | list | set) else value
        for name, value in attributes.items()
    }
