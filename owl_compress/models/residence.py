"""Where the weights of a block are while nobody works on it: in the model, or elsewhere until asked for.

A model that is larger than memory has blocks without weights (on torch's meta device). Each of them has a
`Residence`, which brings its weights for as long as somebody works on them. Blocks without one hold their
weights themselves.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol
from weakref import WeakKeyDictionary

from torch import Tensor, device, nn

from owl_compress.errors import RequestError

Bring = Callable[[Tensor], Tensor]
"""Makes a copy of a tensor of the host where it is to be worked on."""


class Residence(Protocol):
    """Where the weights of one block are."""

    def present(
        self, where: device, fetched: dict[str, Tensor] | None = None
    ) -> AbstractContextManager[None]:
        """Inside, the block holds its weights, on the device `where`; afterwards they are gone.

        Inside of another it changes nothing. What is written to the weights is lost with them. Those that
        were `fetched` there already are taken out of it, and nothing is read.
        """
        ...

    def fetch(self, bring: Bring) -> dict[str, Tensor]:
        """A copy of its weights by their names in the block, which stays without; any thread may ask."""
        ...

    def moved_to(self, file: Path) -> None:
        """From now on the weights are those of a safetensors file, by their names in the model."""
        ...


_ELSEWHERE: "WeakKeyDictionary[nn.Module, Residence]" = WeakKeyDictionary()


def residence_of(block: nn.Module) -> Residence | None:
    """Where the weights of `block` are; None if it holds them itself."""
    return _ELSEWHERE.get(block)


def fetch(block: nn.Module, bring: Bring) -> dict[str, Tensor]:
    """A copy of the weights of `block`, wherever they are, by their names in it; one for a shared tensor."""
    residence = residence_of(block)
    if residence is not None:
        return residence.fetch(bring)
    return {name: bring(tensor.data) for name, tensor in (*block.named_parameters(), *block.named_buffers())}


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
