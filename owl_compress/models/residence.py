"""Where the weights of a block are while nobody works on it: in the model, or elsewhere until asked for.

A model that is larger than memory has blocks without weights (on torch's meta device). Each of them has a
`Residence`, which brings its weights for as long as somebody works on them. Blocks without one hold their
weights themselves.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol
from weakref import WeakKeyDictionary

from torch import device, nn

from owl_compress.errors import RequestError


class Residence(Protocol):
    """Where the weights of one block are."""

    def present(self, where: device) -> AbstractContextManager[None]:
        """Inside, the block holds its weights, on the device `where`; afterwards they are gone.

        Inside of another it changes nothing. What is written to the weights is lost with them.
        """
        ...

    def moved_to(self, file: Path) -> None:
        """From now on the weights are those of a safetensors file, by their names in the model."""
        ...


_ELSEWHERE: "WeakKeyDictionary[nn.Module, Residence]" = WeakKeyDictionary()


def residence_of(block: nn.Module) -> Residence | None:
    """Where the weights of `block` are; None if it holds them itself."""
    return _ELSEWHERE.get(block)


def settle_(block: nn.Module, residence: Residence) -> None:
    """Note where the weights of `block` are."""
    _ELSEWHERE[block] = residence


def blocks_elsewhere(model: nn.Module) -> Iterator[nn.Module]:
    """The blocks of `model` whose weights are elsewhere."""
    return (module for module in model.modules() if module in _ELSEWHERE)


def is_streamed(model: nn.Module) -> bool:
    """Whether blocks of `model` have their weights elsewhere."""
    return next(blocks_elsewhere(model), None) is not None


def refuse_streamed(model: nn.Module, what: str) -> None:
    """Refuse a model whose blocks have their weights elsewhere, for `what` needs them all at once.

    Raises:
        RequestError: it is one.
    """
    if is_streamed(model):
        raise RequestError(f"{what} takes the whole model in memory: use --offload host or none")
