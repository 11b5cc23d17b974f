"""Budgets drawn at random."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from owl_compress.allocators.base import Curve, FloatArray, Group
from owl_compress.allocators.spread import LAM_TEXT, settled_lam, spread
from owl_compress.allocators.target import Granularity, Target
from owl_compress.options import option


@dataclass(frozen=True)
class SeededRandom:
    """OWL's law on scores drawn evenly from [0, 1): what any allocator has to beat (OWL's baseline).

    A draw depends on the seed and the name of the group alone (sha256), so it is the same on every machine,
    in every order of the blocks, and whatever else is skipped or pinned.

    Attributes:
        seed: which draw.
        lam: as for `Owl`.
    """

    name: ClassVar[str] = "random"
    granularity: ClassVar[Granularity] = "block"
    reads_scores: ClassVar[bool] = False
    reads_damage: ClassVar[bool] = False

    seed: int = option(0, "Which draw.")
    lam: float | None = option(None, LAM_TEXT)

    def settled(self, target: Target) -> Self:
        """Settle lam for the unit and grid."""
        return replace(self, lam=settled_lam(self.lam, target))

    def curve(self, groups: Sequence[Group], target: Target) -> Curve:
        """The law of OWL on the draws."""
        return spread(groups, target, self.importance(groups), settled_lam(self.lam, target))

    def importance(self, groups: Sequence[Group]) -> FloatArray:
        """The draws."""
        digests = (hashlib.sha256(f"{self.seed}:{group.name}".encode()).digest() for group in groups)
        return np.array([int.from_bytes(digest[:8]) / 2.0**64 for digest in digests])
