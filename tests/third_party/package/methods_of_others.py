"""An allocator, a backend with two options and a metric, as another package would bring them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

import numpy as np
import torch

from owl_compress.allocators import Curve, Granularity, Group, Target
from owl_compress.compression.tasks import BlockTask, LinearOutcome, density
from owl_compress.documents.units import Unit
from owl_compress.options import option
from owl_compress.walk.scores import ScorePool


@dataclass(frozen=True)
class LastHeaviest:
    """The last block keeps most."""

    name: ClassVar[str] = "last-heaviest"
    granularity: ClassVar[Granularity] = "block"
    reads_scores: ClassVar[bool] = False

    slope: float = option(0.1, "How much more the last block keeps than the first.", at_least=0, at_most=0.5)

    def settled(self, target: Target) -> Self:
        """Nothing is left open."""
        return replace(self)

    def curve(self, groups: Sequence[Group], target: Target) -> Curve:
        """A line through the blocks."""
        shape = self.slope * np.linspace(-0.5, 0.5, len(groups))
        return lambda shift: np.clip(shift + shape, 0, 1)

    def importance(self, groups: Sequence[Group]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """The depth."""
        return np.array([float(group.depth) for group in groups])


@dataclass(frozen=True)
class SoftThreshold:
    """Magnitude pruning that shrinks what stays; its second option is an ordinary field."""

    name: ClassVar[str] = "soft-threshold"
    unit: ClassVar[Unit] = Unit.DENSITY
    statistic: ClassVar[None] = None
    survey: ClassVar[None] = None
    error_measure: ClassVar[str] = "none is told"

    shrink: float = option(0.0, "Share that is taken from every weight that stays.", at_least=0, below=1)
    ties: Literal["first", "last"] = field(default="first", metadata={"help": "Which of equal weights stay."})

    def compress_block_(self, task: BlockTask) -> Sequence[LinearOutcome]:
        """Keep the largest weights of every linear."""
        linears = [linear for group in task.groups for linear in group.linears]
        return [self._compress_(linear.site.name, linear.site.weight, linear.n_kept) for linear in linears]

    def _compress_(self, name: str, weight: torch.Tensor, n_kept: int) -> LinearOutcome:
        order = weight.abs().flatten().argsort(descending=True, stable=True)
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[order[:n_kept]] = True
        weight.mul_(1 - self.shrink).mul_(mask.view(weight.shape))
        return LinearOutcome(name, achieved=density(weight), relative_error=0.0, seconds=0.0)


def weight_max(pool: ScorePool) -> float:
    """Largest |W_ij|."""
    return max(float(part.max()) for member in pool.members for part in member.magnitudes())
