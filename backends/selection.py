"""Which weights stay: exact counts by selection, within a row, a linear, the whole model, or N of M inputs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import floor, nextafter
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from owl_compress.backend import BlockTask, LinearTask
from owl_compress.errors import RequestError
from owl_compress.plan import KeptOfGrid, Plan
from owl_compress.scores import ScoredWeight, ScorePool
from owl_compress.statistics import Statistic


class Scope(StrEnum):
    """The comparison group: among which weights the least important ones are sought (Wanda, Table 3)."""

    ROW = "row"  # every output keeps the same number
    LINEAR = "linear"
    MODEL = "model"


def keep_mask(scores: Tensor, n_kept: int, scope: Scope) -> Tensor:
    """Mask of the `n_kept` highest of `scores`, shape [out, in], bool, with exactly `n_kept` entries set.

    In scope ROW every row keeps n_kept // out; the remainder goes, one each, to the rows whose next score is
    highest. In the other scopes the whole matrix is one group (a model-wide comparison has fixed the count
    of this matrix before). Of equal scores those that come first are kept.
    """
    if scope is Scope.ROW:
        return _keep_by_row(scores, n_kept)
    return _keep_by_row(scores.reshape(1, -1), n_kept).reshape(scores.shape)


def keep_mask_of_groups(scores: Tensor, kept: int, group: int) -> Tensor:
    """N:M mask: the `kept` highest of every `group` consecutive inputs; `scores` and mask [out, in]."""
    rows, columns = scores.shape
    # [out, in] -> [out * in / group, group]
    return _keep_by_row(scores.reshape(-1, group), rows * columns // group * kept).reshape(rows, columns)


def kept_per_group(task: LinearTask, grid: KeptOfGrid) -> int:
    """N of the N:M pattern that `task` asks for: the number *kept* of every M consecutive inputs.

    Raises:
        RequestError: M does not divide the input size of the linear.
    """
    n_inputs = task.site.shape[1]
    if n_inputs % grid.kept_of:
        raise RequestError(
            f"{task.site.name} has {n_inputs} inputs, which groups of {grid.kept_of} do not divide: "
            f"choose another M or --skip {task.site.name}"
        )
    return round(task.budget * grid.kept_of)


def _keep_by_row(scores: Tensor, n_kept: int) -> Tensor:
    rows, columns = scores.shape
    base, extra = divmod(n_kept, rows)
    if base == columns:
        return torch.ones_like(scores, dtype=torch.bool)
    # Rising order statistics of each row: the last score that goes anyway, and the first that stays anyway.
    next_best, lowest_kept = _order_statistics(scores, columns - base - 1, min(columns - base, columns - 1))
    threshold = lowest_kept if base else torch.full_like(lowest_kept, torch.inf)
    row_kept = torch.full((rows,), base, device=scores.device)
    if extra:
        favoured = torch.sort(next_best, descending=True, stable=True).indices[:extra]
        threshold[favoured] = next_best[favoured]
        row_kept[favoured] += 1
    mask = scores >= threshold[:, None]
    surplus = mask.sum(dim=1) - row_kept
    for row in surplus.nonzero().flatten().tolist():
        ties = (scores[row] == threshold[row]).nonzero().flatten()
        mask[row, ties[len(ties) - int(surplus[row]) :]] = False
    return mask


def _order_statistics(scores: Tensor, *ranks: int) -> tuple[Tensor, ...]:
    """The rank-th smallest (from 0) entry of each row for each of `ranks`, each of shape [rows]."""
    if scores.device.type == "cpu":  # numpy's partition is several times faster than torch's selection
        ordered = np.partition(scores.numpy(), sorted(set(ranks)), axis=1)
        return tuple(torch.from_numpy(ordered[:, rank].copy()) for rank in ranks)
    return tuple(scores.kthvalue(rank + 1, dim=1).values for rank in ranks)


class ColumnScale(Protocol):
    """How a backend scores: |W_ij| * scale_j."""

    def column_scale(self, statistic: Statistic | None, n_inputs: int) -> Tensor:
        """The scale of each input, shape [in], float32."""
        ...


@dataclass
class ModelWideSurvey:
    """Compares the scores |W_ij| * scale_j of all linears with each other, on the dense model.

    The `plan` sets the total alone: the number of weights kept in the whole model. One threshold over all
    scores, found exactly, then gives the count of each linear.
    """

    scoring: ColumnScale
    _weights: dict[str, ScoredWeight] = field(default_factory=dict)

    def see(self, task: BlockTask) -> None:
        """Note the scale of every input; the weights are referred to, not copied."""
        for group in task.groups:
            for linear in group.linears:
                scale = self.scoring.column_scale(group.statistic, linear.site.shape[1])
                self._weights[linear.site.name] = ScoredWeight(linear.site.weight, scale.to(linear.site.weight.device))

    def redistribute(self, plan: Plan) -> Plan:
        """Per-linear densities of one model-wide comparison, with as many weights kept as `plan` keeps."""
        pool = ScorePool(tuple(self._weights[budget.name] for budget in plan.budgets))
        n_kept = sum(floor(budget.value * budget.n_weights) for budget in plan.budgets)
        counts = _counts_above(pool, n_kept)
        budgets = [
            budget.model_copy(update={"value": density_keeping(kept, budget.n_weights)})
            for budget, kept in zip(plan.budgets, counts, strict=True)
        ]
        return Plan.model_validate(
            {**plan.model_dump(), "low": 0.0, "high": 1.0, "budgets": [budget.model_dump() for budget in budgets]}
        )


def _counts_above(pool: ScorePool, n_kept: int) -> Sequence[int]:
    """How many of the `n_kept` highest scores of the pool lie in each member; equal scores go to the first."""
    if n_kept == 0:
        return [0] * len(pool.members)
    threshold = pool.kth_smallest(pool.size - n_kept + 1)
    singles = [ScorePool((member,)) for member in pool.members]
    counts = [single.count_above(threshold) for single in singles]
    missing = n_kept - sum(counts)
    for index, single in enumerate(singles):
        ties = sum(int((chunk == threshold).sum()) for chunk in single.chunks())
        taken = min(ties, missing)
        counts[index] += taken
        missing -= taken
    return counts


def density_keeping(n_kept: int, n_weights: int) -> float:
    """The smallest density whose floor(density * n_weights) is `n_kept`."""
    value = n_kept / n_weights
    while floor(value * n_weights) < n_kept:
        value = nextafter(value, 1.0)
    return value


