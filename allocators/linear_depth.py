"""Budgets that fall linearly with depth."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from owl_compress.allocators.base import Curve, FloatArray, Group
from owl_compress.allocators.spread import LAM_TEXT, settled_lam, spread
from owl_compress.allocators.target import Granularity, Target
from owl_compress.options import option


@dataclass(frozen=True)
class LinearDepth:
    """The first block keeps most, the last least, with equal steps between, and OWL's range for the same lam.

    Needs nothing but the order of the blocks. Proposed for LLMs as a rule of thumb beside measured scores;
    here with the mean met exactly for unequal blocks too.

    Attributes:
        lam: half the range (law `published`) or largest departure (law `bounded`, used on grids), as for
        `Owl`.
    """

    name: ClassVar[str] = "linear-depth"
    granularity: ClassVar[Granularity] = "block"
    reads_scores: ClassVar[bool] = False

    lam: float | None = option(None, LAM_TEXT)

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
