"""OWL turned round: blocks with more outliers keep less."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from owl_compress.allocators.base import Curve, FloatArray, Group, metric_values
from owl_compress.allocators.spread import (
    LAM_TEXT,
    METRIC_TEXT,
    PAPER,
    OwlLaw,
    settled_lam,
    settled_law,
    spread,
)
from owl_compress.allocators.target import Granularity, Target
from owl_compress.options import option


@dataclass(frozen=True)
class OwlInverse:
    """OWL turned round, more outliers keep less: the control of OWL (arXiv 2310.05175), z replaced by 1 - z.

    Attributes:
        metric, lam, law: as for `Owl`; on an N:M grid both laws keep the budget.
    """

    name: ClassVar[str] = "owl-inverse"
    granularity: ClassVar[Granularity] = "block"
    reads_scores: ClassVar[bool] = True
    reads_damage: ClassVar[bool] = False
    credit: ClassVar[str] = PAPER

    metric: str = option("lod@5", METRIC_TEXT)
    lam: float | None = option(None, LAM_TEXT)
    law: OwlLaw | None = option(
        None,
        "published: a range of 2 lam (default off a grid); bounded: no further than lam (default on one).",
        name="owl_law",
    )

    def settled(self, target: Target) -> Self:
        """Settle lam and law for the unit and grid."""
        return replace(self, lam=settled_lam(self.lam, target), law=settled_law(self.law, target))

    def curve(self, groups: Sequence[Group], target: Target) -> Curve:
        """The law of OWL on the negated metric."""
        scores = -metric_values(groups, self.metric)
        return spread(groups, target, scores, settled_lam(self.lam, target), self.law)

    def importance(self, groups: Sequence[Group]) -> FloatArray:
        """The metric mirrored within its own range, min D + max D - D."""
        scores = metric_values(groups, self.metric)
        return float(scores.min()) + (float(scores.max()) - scores)
