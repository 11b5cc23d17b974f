"""OWL's law on the mean absolute weight."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import fsum
from typing import ClassVar, Self

import numpy as np

from owl_compress.allocators.base import Curve, FloatArray, Group
from owl_compress.allocators.spread import LAM_TEXT, settled_lam, spread
from owl_compress.allocators.target import Granularity, Target
from owl_compress.errors import RequestError
from owl_compress.options import option

_METRIC = "weight_l1"


@dataclass(frozen=True)
class WeightL1:
    """Groups of larger mean |W| keep more: the weight-norm baseline of OWL (arXiv 2310.05175).

    Activations do not count. The report's `weight_l1` is Σ|W|; it is divided by the number of weights here,
    or large blocks would count as important for being large.

    Attributes:
        lam: as for `Owl`.
    """

    name: ClassVar[str] = "weight-l1"
    granularity: ClassVar[Granularity] = "block"
    reads_scores: ClassVar[bool] = True
    reads_damage: ClassVar[bool] = False

    lam: float | None = option(None, LAM_TEXT)

    def settled(self, target: Target) -> Self:
        """Settle lam for the unit and grid."""
        return replace(self, lam=settled_lam(self.lam, target))

    def curve(self, groups: Sequence[Group], target: Target) -> Curve:
        """The law of OWL on the mean absolute weight."""
        return spread(groups, target, self.importance(groups), settled_lam(self.lam, target))

    def importance(self, groups: Sequence[Group]) -> FloatArray:
        """Mean |W| over the group's linears."""
        return np.array([_mean_absolute(group) for group in groups])


def _mean_absolute(group: Group) -> float:
    for linear in group.linears:
        if _METRIC not in linear.metrics:
            raise RequestError(
                f"the report has no metric {_METRIC!r} for {linear.name}: measure again with it"
            )
    return fsum(linear.metrics[_METRIC] for linear in group.linears) / group.n_weights
