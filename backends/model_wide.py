"""A comparison across the whole model: one threshold over the scores of all linears sets their counts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nextafter
from typing import ClassVar, Protocol

from torch import Tensor

from owl_compress.compression.contract import Surveyed
from owl_compress.compression.tasks import BlockTask, GroupTask
from owl_compress.documents.plan import Plan
from owl_compress.documents.units import kept_weights
from owl_compress.models.structure import LinearSite
from owl_compress.walk.input_statistics import Statistic
from owl_compress.walk.scores import ScoredWeight, ScorePool


class ColumnScale(Protocol):
    """How a backend scores: |W_ij| * scale_j."""

    def column_scale(self, group: GroupTask) -> Tensor:
        """The scale of each input of the group's linears, shape [in], float32."""
        ...


@dataclass
class ModelWideSurvey:
    """Compares the scores |W_ij| * scale_j of all linears with each other, on the dense model.

    The `plan` sets the total alone: the number of weights kept in the whole model. One threshold over all
    scores, found exactly, then gives the count of each linear.
    """

    scoring: ColumnScale
    statistic: type[Statistic] | None = None
    _scales: dict[str, tuple[LinearSite, Tensor]] = field(default_factory=dict)

    restates: ClassVar[bool] = True

    def see(self, task: BlockTask) -> None:
        """Note the scale of every input. Weights are looked at later: they may be on the device for now."""
        for group in task.groups:
            scale = self.scoring.column_scale(group)
            for linear in group.linears:
                self._scales[linear.site.name] = linear.site, scale

    def redistribute(self, plan: Plan) -> Surveyed:
        """Per-linear densities of one model-wide comparison, with as many weights kept as `plan` keeps."""
        sites = [self._scales[budget.name] for budget in plan.budgets]
        pool = ScorePool(tuple(ScoredWeight(s.weight, scale.to(s.weight.device)) for s, scale in sites))
        n_kept = sum(kept_weights(budget.value, budget.n_weights) for budget in plan.budgets)
        budgets = [
            {**budget.model_dump(), "value": density_keeping(kept, budget.n_weights)}
            for budget, kept in zip(plan.budgets, _counts_of_highest(pool, n_kept), strict=True)
        ]
        changed = {"low": 0.0, "high": 1.0, "budgets": budgets}
        return Surveyed(Plan.model_validate({**plan.model_dump(), **changed}))


def _counts_of_highest(pool: ScorePool, n_kept: int) -> Sequence[int]:
    """How many of the `n_kept` highest scores lie in each member; equal scores go to the first."""
    if n_kept == 0:
        return [0] * len(pool.members)
    threshold = pool.kth_smallest(pool.size - n_kept + 1)
    singles = [ScorePool((member,)) for member in pool.members]
    counts = [single.count_above(threshold) for single in singles]
    missing = n_kept - sum(counts)
    for index, single in enumerate(singles):
        if not missing:
            break
        ties = sum(int((chunk == threshold).sum()) for chunk in single.chunks())
        taken = min(ties, missing)
        counts[index] += taken
        missing -= taken
    return counts


def density_keeping(n_kept: int, n_weights: int) -> float:
    """The smallest density that keeps `n_kept` of `n_weights`."""
    value = n_kept / n_weights
    while kept_weights(value, n_weights) < n_kept:
        value = nextafter(value, 1.0)
    return value
