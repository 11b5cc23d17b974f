"""Budgets that fall linearly with depth."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from owl_compress.allocators.base import Curve, FloatArray, Group
from owl_compress.allocators.spread import LAM_TEXT, lams_to_try, settled_lam, spread
from owl_compress.allocators.target import Granularity, Target
from owl_compress.options import option


@dataclass(frozen=True)
class LinearDepth:
    """The first block keeps most, the last least, with equal steps between, and OWL's range for the same lam.

    Needs nothing but the order of the blocks. This is what ATP proposes (arXiv 2502.14770): sparsities in an
    arithmetic progression that rises with depth, S_i = S + beta · (i - (L + 1) / 2) for block i of L, with
    beta searched for. That is law `published` with lam = beta · (L - 1) / 2. Here the mean is met exactly for
    blocks of unequal sizes too, and beta is not searched for.

    Attributes:
        lam: half the range (law `published`) or largest departure (law `bounded`, used on grids), as for
        `Owl`.
    """

    name: ClassVar[str] = "linear-depth"
    granularity: ClassVar[Granularity] = "block"
    reads_scores: ClassVar[bool] = False
    reads_damage: ClassVar[bool] = False

    lam: float | None = option(None, LAM_TEXT)

    @classmethod
    def settings_to_try(cls, target: Target) -> tuple[Self, ...]:
        """A few slopes."""
        return tuple(cls(lam) for lam in lams_to_try(target))

    def settled(self, target: Target) -> Self:
        """Settle lam for the unit and grid."""
        return replace(self, lam=settled_lam(self.lam, target))

    def curve(self, groups: Sequence[Group], target: Target) -> Curve:
        """The law of OWL with falling depth as its score."""
        return spread(groups, target, self.importance(groups), settled_lam(self.lam, target))

    def importance(self, groups: Sequence[Group]) -> FloatArray:
        """Blocks from here to the last one, this one counted."""
        depths = np.array([group.depth for group in groups], dtype=np.float64)
        return float(depths.max()) + 1 - depths
