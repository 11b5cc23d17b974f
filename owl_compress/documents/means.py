"""Means over the weights of each block, of plans and results alike."""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar


class OfBlock(Protocol):
    """A linear, the block that it is in, and its size."""

    @property
    def block(self) -> str:
        """Name of the block."""
        ...

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        ...


T = TypeVar("T", bound=OfBlock)


def block_means(linears: Iterable[T], read: Callable[[T], float]) -> dict[str, float]:
    """What `read` finds in each linear, averaged over the weights of each block, in their order."""
    sums: dict[str, tuple[float, int]] = {}
    for one in linears:
        total, n_weights = sums.get(one.block, (0.0, 0))
        sums[one.block] = (total + one.n_weights * read(one), n_weights + one.n_weights)
    return {block: total / n_weights for block, (total, n_weights) in sums.items()}
