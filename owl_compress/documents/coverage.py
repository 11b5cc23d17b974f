"""Which of the weights in the blocks of a model get a budget, and which are left as they are."""

from collections.abc import Iterable

from pydantic import PositiveInt

from owl_compress.documents.document import Frozen


class LeftOut(Frozen):
    """Matrices that get no budget, alike in several blocks.

    `name` is what they are called below their block, with `*` for numbers. `linears` are the full names of
    those that are linears, which a plan could name.
    """

    name: str
    n_blocks: PositiveInt
    n_weights: PositiveInt
    linears: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """As people read it: `mlp.experts.down_proj (24 blocks)`."""
        return f"{self.name} ({self.n_blocks} {'block' if self.n_blocks == 1 else 'blocks'})"


class Coverage(Frozen):
    """All matrices in the blocks: `n_weights` counts those of the linears and those that are left out.

    Vectors (norms, biases) are no matrices. What a user leaves out of a plan is not counted as left out here.
    """

    n_weights: PositiveInt
    left_out: tuple[LeftOut, ...] = ()

    @property
    def n_left_out(self) -> int:
        """Weights that get no budget."""
        return sum(one.n_weights for one in self.left_out)

    @property
    def share(self) -> float:
        """Share of the weights that get a budget."""
        return 1 - self.n_left_out / self.n_weights

    @property
    def linears(self) -> frozenset[str]:
        """Full names of the linears that are left out."""
        return frozenset(name for one in self.left_out for name in one.linears)

    @property
    def named(self) -> str:
        """What is left out, the largest first, in a line."""
        return ", ".join(one.shown for one in by_size(self.left_out))


def by_size(left_out: Iterable[LeftOut]) -> list[LeftOut]:
    """The largest first."""
    return sorted(left_out, key=lambda one: -one.n_weights)
