"""DLP: blocks whose median score is low keep more."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from owl_compress.allocators.base import Curve, FloatArray, Group, metric_values
from owl_compress.allocators.spread import METRIC_TEXT, settled_lam, spread
from owl_compress.allocators.target import Granularity, Target
from owl_compress.options import option

_ALPHA = 0.15


@dataclass(frozen=True)
class Dlp:
    """Dynamic Layerwise Pruning (arXiv 2505.23807).

    The score s_i of a block is the median of |W| · ‖X‖ over all its weights; its relative importance is
    r_i = 1 - s_i / Σ s, z is r stretched to [0, 1], and value_i = target + 2 · alpha · (z_i - mean z).

    We call alpha `lam`, because it is OWL's lam in all but the default, 0.15. Where we differ: the mean of z
    is weighted by number of weights; on a grid the largest departure is lam (law `bounded` of `Owl`). The
    authors' code for unstructured pruning takes the mean of the scores where the paper takes the median; with
    `metric="score_mean"` so do we.

    Attributes:
        metric: the score, `score_median` as in the paper.
        lam: the paper's alpha; on an N:M grid in kept weights of M, default 2; in bits default 1.
    """

    name: ClassVar[str] = "dlp"
    granularity: ClassVar[Granularity] = "block"
    reads_scores: ClassVar[bool] = True
    reads_damage: ClassVar[bool] = False

    metric: str = option("score_median", METRIC_TEXT)
    lam: float | None = option(
        None, "The paper's alpha, half the range of the budgets: 0.15; of N:M 2 weights of M, of bits 1."
    )

    @classmethod
    def settings_to_try(cls, target: Target) -> tuple[Self, ...]:
        """The usual half range, and half of it."""
        usual = settled_lam(None, target, _ALPHA)
        return tuple(cls(lam=round(share * usual, 6)) for share in (1.0, 0.5))

    def settled(self, target: Target) -> Self:
        """Settle lam for the unit and grid."""
        return replace(self, lam=settled_lam(self.lam, target, _ALPHA))

    def curve(self, groups: Sequence[Group], target: Target) -> Curve:
        """The law of OWL on the relative importance."""
        # Negated scores have the same z as r, without the loss of digits in 1 - s / Σ s.
        scores = -metric_values(groups, self.metric)
        return spread(groups, target, scores, settled_lam(self.lam, target, _ALPHA))

    def importance(self, groups: Sequence[Group]) -> FloatArray:
        """r_i = 1 - s_i / Σ s."""
        scores = metric_values(groups, self.metric)
        total = scores.sum()
        return 1 - scores / total if total > 0 else np.ones_like(scores)
