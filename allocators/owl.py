"""OWL: blocks with more outliers keep more."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from owl_compress.allocators.base import (
    Curve,
    FloatArray,
    Group,
    OffBudget,
    metric_values,
    sizes,
    weighted_mean,
)
from owl_compress.allocators.spread import (
    LAM_TEXT,
    METRIC_TEXT,
    PAPER,
    OwlLaw,
    settled_lam,
    settled_law,
    spread,
    unit_range,
)
from owl_compress.allocators.target import Granularity, Target
from owl_compress.documents.units import KeptOfGrid
from owl_compress.errors import RequestError
from owl_compress.options import option


@dataclass(frozen=True)
class Owl:
    """Outlier Weighed Layerwise sparsity (arXiv 2310.05175).

    With D the metric, z = (D - min D) / (max D - min D) and m the weighted mean of z:

    - law `published`: value_i = target + 2 · lam · (z_i - m). What the paper's code computes and what made
      its tables. It keeps the mean and makes the range 2 · lam, so that a block may depart further than lam,
      although the paper's text says S_i ∈ [S - lam, S + lam]. The mean m is weighted by number of weights
      (the code's is not: the same thing for equal blocks).
    - law `bounded`: the same shape, scaled so that the largest departure from the target is lam.

    Left open, the law is `published` without a grid and `bounded` on one.

    On an N:M grid the law `published` is the rule of the paper's mixed N:M code instead, and it drifts off
    the budget: every block keeps N + d_i of M with d_i = round(lam · z_i - mean(lam · z)), where lam counts
    kept weights (default 2) and is the whole range, not half of it. Rounding each block on its own makes the
    sum of d_i anything but zero, and the code then turns every d_i of exactly 1 into 2, which only ever adds:
    with lam = 2 and z spread evenly, a quarter of the blocks keep two more, a quarter one less, and 3:8 has
    become 3.25:8. (The code counts pruned weights, N_pruned - d_i; the same rule.) The plan states the
    average that came out as its target and, among the parameters, the one that was asked for and the drift.
    Everything else here keeps the budget.

    Attributes:
        metric: of the report; a block's own, or with granularity linear each linear's own.
        lam: half the range, default 0.08; on an N:M grid in kept weights of M, default 2; in bits default 1.
        law: as above.
    """

    name: ClassVar[str] = "owl"
    granularity: ClassVar[Granularity] = "block"
    reads_scores: ClassVar[bool] = True
    credit: ClassVar[str] = PAPER

    metric: str = option("lod@5", METRIC_TEXT)
    lam: float | None = option(None, LAM_TEXT)
    law: OwlLaw | None = option(
        None, "Range of 2 lam, or no further than lam; the first off a grid, else the second.", name="owl_law"
    )

    def settled(self, target: Target) -> Self:
        """Settle lam and law for the unit and grid."""
        return replace(self, lam=settled_lam(self.lam, target), law=settled_law(self.law, target))

    def curve(self, groups: Sequence[Group], target: Target) -> Curve | OffBudget:
        """The law, shifted by its argument; on an N:M grid `published` gives its own values."""
        scores = metric_values(groups, self.metric)
        lam, law = settled_lam(self.lam, target), settled_law(self.law, target)
        if law == "published" and isinstance(target.grid, KeptOfGrid):
            return OffBudget(_published_kept(groups, target, scores, lam) / target.grid.kept_of)
        return spread(groups, target, scores, lam, law)

    def importance(self, groups: Sequence[Group]) -> FloatArray:
        """The metric."""
        return metric_values(groups, self.metric)


def _published_kept(groups: Sequence[Group], target: Target, scores: FloatArray, lam: float) -> FloatArray:
    """N + d_i of the published mixed N:M rule."""
    kept_of = target.grid.kept_of if isinstance(target.grid, KeptOfGrid) else 1
    kept = target.value * kept_of
    if abs(kept - round(kept)) > 1e-9:
        raise RequestError(
            f"the published N:M law needs a whole N, not {kept:g}:{kept_of}; use law 'bounded'"
        )
    stretched = lam * unit_range(scores)
    departure = np.round(stretched - weighted_mean(stretched, sizes(groups)))
    departure[departure == 1] = 2
    chosen = round(kept) + departure
    low, high = (round(bound * kept_of) for bound in (target.plan_low, target.plan_high))
    for group, value in zip(groups, chosen.tolist(), strict=True):
        if not low <= value <= high:
            raise RequestError(
                f"the published N:M law keeps {value:g} of {kept_of} in {group.name}, outside {low}..{high}: "
                f"use a smaller lam than {lam:g}, or law 'bounded'"
            )
    return chosen
