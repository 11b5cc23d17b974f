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
    MixedLaw,
    lams_to_try,
    settled_lam,
    settled_law,
    spread,
    unit_range,
)
from owl_compress.allocators.target import Granularity, Target
from owl_compress.documents.units import KeptOfGrid
from owl_compress.errors import RequestError
from owl_compress.options import option

_OUTLIERS_TO_TRY = (5, 7, 10, 3)
"""The M of lod@M that the paper's authors tune over, the usual one first."""


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

    On an N:M grid the authors have rules of their own, in which lam counts kept weights of M (default 2) and
    is the whole range, not half of it. With d_i = round(lam · z_i - mean(lam · z)), halves to even:

    - law `published`: block i keeps N + d_i of M. That is what their README documents (`wanda_owl_structure`
      in their code, which counts pruned weights: N_pruned - d_i). Every block is rounded on its own, so that
      the d_i need not sum to zero, though they often do.
    - law `published-special`: every d_i of exactly 1 is 2 instead (their `..._structure_special`, which no
      document of theirs names). That only ever adds: with lam = 2 and z spread evenly, a quarter of the
      blocks keep two more, a quarter one less, and 3:8 has become 3.25:8.

    Where such a rule drifts off the budget, the plan states the average that came out as its target and,
    among the parameters, the one that was asked for and the drift. Everything else here keeps the budget.

    Attributes:
        metric: of the report; a block's own, or with granularity linear each linear's own.
        lam: half the range, default 0.08; on an N:M grid in kept weights of M, default 2; in bits default 1.
        law: as above.
    """

    name: ClassVar[str] = "owl"
    granularity: ClassVar[Granularity] = "block"
    reads_scores: ClassVar[bool] = True
    reads_damage: ClassVar[bool] = False
    credit: ClassVar[str] = PAPER

    metric: str = option("lod@5", METRIC_TEXT)
    lam: float | None = option(None, LAM_TEXT)
    law: MixedLaw | None = option(
        None,
        "published: a range of 2 lam (default off a grid); bounded: no further than lam (default on one). "
        "On an N:M grid published is the rule of the authors' README, and published-special keeps 2 more "
        "where that keeps 1.",
        name="owl_law",
    )

    @classmethod
    def settings_to_try(cls, target: Target) -> tuple[Self, ...]:
        """The paper's grid, M by lam; the nearer to the usual ones, the earlier."""
        settings = [
            (place + rank, cls(metric=f"lod@{outlier}", lam=lam))
            for place, outlier in enumerate(_OUTLIERS_TO_TRY)
            for rank, lam in enumerate(lams_to_try(target))
        ]
        return tuple(setting for _, setting in sorted(settings, key=lambda one: one[0]))

    def settled(self, target: Target) -> Self:
        """Settle lam and law for the unit and grid.

        Raises:
            RequestError: lam cannot be meant, or the law is for another grid.
        """
        law = self.law or settled_law(None, target)
        if law == "published-special" and not isinstance(target.grid, KeptOfGrid):
            raise RequestError("owl-law 'published-special' is a rule for N:M (--nm): use 'published'")
        return replace(self, lam=settled_lam(self.lam, target), law=law)

    def curve(self, groups: Sequence[Group], target: Target) -> Curve | OffBudget:
        """The law, shifted by its argument; on an N:M grid the authors' rules give their own values."""
        scores = metric_values(groups, self.metric)
        lam, law = settled_lam(self.lam, target), self.law or settled_law(None, target)
        if law != "bounded" and isinstance(target.grid, KeptOfGrid):
            departure = mixed_departures(scores, sizes(groups), lam, is_special=law == "published-special")
            return OffBudget(_kept_by_rule(groups, target, departure, lam) / target.grid.kept_of)
        return spread(groups, target, scores, lam, "bounded" if law == "bounded" else "published")

    def importance(self, groups: Sequence[Group]) -> FloatArray:
        """The metric."""
        return metric_values(groups, self.metric)


def mixed_departures(scores: FloatArray, weights: FloatArray, lam: float, *, is_special: bool) -> FloatArray:
    """d_i of the authors' rules for mixed N:M, in kept weights of M; see `Owl`."""
    stretched = lam * unit_range(scores)
    departure = np.round(stretched - weighted_mean(stretched, weights))
    if is_special:
        departure[departure == 1] = 2
    return departure


def _kept_by_rule(groups: Sequence[Group], target: Target, departure: FloatArray, lam: float) -> FloatArray:
    """N + d_i of each group, refused where a block would be emptied or leave the bounds."""
    kept_of = target.grid.kept_of if isinstance(target.grid, KeptOfGrid) else 1
    kept = target.value * kept_of
    if abs(kept - round(kept)) > 1e-9:
        raise RequestError(
            f"the authors' rules for N:M need a whole N, not {kept:g}:{kept_of}: use --owl-law bounded"
        )
    chosen = round(kept) + departure
    allowed = [round(level * kept_of) for level in target.levels]
    for group, value in zip(groups, chosen.tolist(), strict=True):
        if not allowed[0] <= value <= allowed[-1]:
            raise RequestError(
                f"the authors' rule for N:M keeps {value:g} of {kept_of} in {group.name}, outside "
                f"{allowed[0]}..{allowed[-1]}: use a smaller lam than {lam:g}, or --owl-law bounded"
            )
    return chosen
