"""Pruning by a mask alone: what magnitude and Wanda share once their scores are told apart."""

from functools import partial
from math import isfinite
from time import perf_counter

import torch
from torch import Tensor

from owl_compress.backends.model_wide import ColumnScale
from owl_compress.backends.selection import (
    Scope,
    in_order,
    keep_mask,
    keep_mask_of_groups,
    kept_per_group,
    zero_outside_,
)
from owl_compress.compression.tasks import BlockTask, GroupTask, LinearOutcome, LinearTask, density
from owl_compress.documents.units import Grid, KeptOfGrid
from owl_compress.errors import RequestError
from owl_compress.models.structure import LinearSite

_SCORES_AT_ONCE = 2**18
"""Scores that are added up at a time: a MiB of float32."""


def prune_block_(task: BlockTask, scoring: ColumnScale, scope: Scope) -> list[LinearOutcome]:
    """Zero all but the highest scores |W_ij| * scale_j of every linear of `task`.

    Raises:
        RequestError: a weight holds NaN or Inf, or the N:M grid does not fit it.
    """
    outcomes = []
    for group in task.groups:
        scale = scoring.column_scale(group)
        outcomes += [_prune_linear_(group, linear, scale, scope, task.grid) for linear in group.linears]
    return outcomes


def _scores(site: LinearSite, scale: Tensor) -> Tensor:
    """|W_ij| * scale_j, float32 [out, in]."""
    return site.weight.abs().float().mul_(scale)


def _energy(scores: Tensor, mask: Tensor | None = None) -> float:
    """Sum of W_ij^2 * scale_j^2, the output energy if inputs were uncorrelated: of all, or outside `mask`.

    `scores` and `mask` [out, in]; some rows at a time, so that little is held beside them. The norm of each
    row is taken in float32, and summed in float64.
    """
    n_rows = max(1, _SCORES_AT_ONCE // scores.shape[1])
    total = torch.zeros((), dtype=torch.float64, device=scores.device)
    for start in range(0, scores.shape[0], n_rows):
        some = scores[start : start + n_rows]
        if mask is not None:
            some = some.clone()
            zero_outside_(some, ~mask[start : start + n_rows])
        total += torch.linalg.vector_norm(some, dim=1).double().square().sum()
    return float(total)


def _prune_linear_(
    group: GroupTask, task: LinearTask, scale: Tensor, scope: Scope, grid: Grid | None
) -> LinearOutcome:
    start = perf_counter()
    weight = task.site.weight
    scores = group.once(task.site.name, partial(_scores, task.site, scale))
    if isinstance(grid, KeptOfGrid):
        mask = keep_mask_of_groups(scores, kept_per_group(task, grid), grid.kept_of)
    else:
        ordered = None
        if group.is_tried_again:
            ordered = group.once((task.site.name, "ordered"), partial(in_order, scores, scope))
        mask = keep_mask(scores, task.n_kept, scope, ordered)
    total = group.once((task.site.name, "energy"), partial(_energy, scores))
    if not isfinite(total):
        raise RequestError(f"{task.site.name} holds NaN or Inf, or overflows: check the checkpoint")
    lost = _energy(scores, mask)
    zero_outside_(weight, mask)
    return LinearOutcome(
        task.site.name,
        achieved=density(weight),
        relative_error=lost / total if total else 0.0,
        seconds=perf_counter() - start,
    )
