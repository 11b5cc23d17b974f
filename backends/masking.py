"""Pruning by a mask alone: what magnitude and Wanda share once their scores are told apart."""

from time import perf_counter

import torch
from torch import Tensor

from owl_compress.backend import BlockTask, LinearOutcome, LinearTask, density
from owl_compress.backends.selection import ColumnScale, Scope, keep_mask, keep_mask_of_groups, kept_per_group
from owl_compress.plan import Grid, KeptOfGrid


def prune_block_(task: BlockTask, scoring: ColumnScale, scope: Scope) -> list[LinearOutcome]:
    """Zero all but the highest scores |W_ij| * scale_j of every linear of `task`."""
    return [
        _prune_linear_(linear, scoring.column_scale(group.statistic, linear.site.shape[1]), scope, task.grid)
        for group in task.groups
        for linear in group.linears
    ]


def _prune_linear_(task: LinearTask, scale: Tensor, scope: Scope, grid: Grid | None) -> LinearOutcome:
    start = perf_counter()
    weight = task.site.weight
    scores = weight.float().abs() * scale
    if isinstance(grid, KeptOfGrid):
        mask = keep_mask_of_groups(scores, kept_per_group(task, grid), grid.kept_of)
    else:
        mask = keep_mask(scores, task.n_kept, scope)
    energy = scores.square_()  # W_ij^2 * scale_j^2: the output energy if inputs were uncorrelated
    total = float(energy.sum(dtype=torch.float64))
    lost = float(energy.masked_fill_(mask, 0.0).sum(dtype=torch.float64))
    weight.masked_fill_(~mask, 0.0)
    return LinearOutcome(
        task.site.name,
        achieved=density(weight),
        relative_error=lost / total if total else 0.0,
        seconds=perf_counter() - start,
    )
