"""Which of the weights in the blocks of a model get a budget, and which are left as they are."""

from pydantic import PositiveInt

from owl_compress.documents.document import Frozen
from owl_compress.errors import RequestError

LEAST_SHARE = 0.5
"""Of the weights in the blocks that a budget has to reach before the whole is called compressed."""

_NAMED = 5


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
        """What is left out, the largest first, in a line; only the first of many."""
        names = [one.shown for one in sorted(self.left_out, key=lambda one: -one.n_weights)]
        further = len(names) - _NAMED
        return ", ".join([*names[:_NAMED], *([f"{further} more"] if further > 0 else [])])


def check_covered(coverage: Coverage, *, partial: bool) -> None:
    """Refuse a model of which less than half could get a budget, unless a part is what is wanted.

    Raises:
        RequestError: naming what would be left as it is.
    """
    if coverage.share < LEAST_SHARE and not partial:
        raise RequestError(
            f"only {percent(coverage.share)} of the weights in the blocks can get a budget, the rest is left "
            f"as it is: {coverage.named}; to go on with that part alone give --partial"
        )


def percent(share: float) -> str:
    """A share as people read it; what is not all is never rounded up to all."""
    return f"{min(100 * share, 99.99) if share < 1 else 100:.4g} %"
