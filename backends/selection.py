"""Which weights stay: exact counts by selection, within a row, a linear, or N of M inputs."""

from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from owl_compress.compression.tasks import LinearTask
from owl_compress.documents.units import KeptOfGrid
from owl_compress.errors import RequestError, nearest

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their bytes."""


class Scope(StrEnum):
    """The comparison group: among which weights the least important ones are sought (Wanda, Table 3)."""

    ROW = "row"  # every output keeps the same number
    LINEAR = "linear"
    MODEL = "model"

    @classmethod
    def _missing_(cls, value: object) -> "Scope":
        raise RequestError(f"unknown scope {value!r}: {nearest(str(value), cls)}")


def keep_mask(scores: Tensor, n_kept: int, scope: Scope, ordered: Tensor | None = None) -> Tensor:
    """Mask of the `n_kept` highest of `scores`, shape [out, in], bool, with exactly `n_kept` entries set.

    In scope ROW every row keeps n_kept // out; the remainder goes, one each, to the rows whose next score is
    highest in relation to the row's own norm, since rows are not compared by their scale. In the other
    scopes the whole matrix is one group (a model-wide comparison has fixed the count of this matrix before).
    Of equal scores those that come first are kept. Who asks for several masks of the same scores hands over
    what `in_order` makes of them.
    """
    return _keep_by_row(_grouped(scores, scope), n_kept, ordered).reshape(scores.shape)


def in_order(scores: Tensor, scope: Scope) -> Tensor:
    """`scores` [out, in], rising within each of the groups that are compared, [groups, scores of each].

    On a CPU that takes as long as a single selection.
    """
    grouped = _grouped(scores, scope)
    if grouped.device.type == "cpu":  # numpy sorts ten times as fast as torch
        return torch.from_numpy(np.sort(grouped.numpy(), axis=1))
    return grouped.sort(dim=1).values


def keep_mask_of_groups(scores: Tensor, kept: int, group: int) -> Tensor:
    """N:M mask: the `kept` highest of every `group` consecutive inputs; `scores` and mask [out, in]."""
    rows, columns = scores.shape
    # [out, in] -> [out * in / group, group]
    return _keep_by_row(scores.reshape(-1, group), rows * columns // group * kept).reshape(rows, columns)


def zero_outside_(values: Tensor, mask: Tensor) -> None:
    """Set all of floating-point `values` that `mask` does not name to +0.0, in place, NaN and Inf too.

    By their bits: on a CPU `masked_fill_` takes three times as long where what goes lies scattered.
    """
    bits = values.view(_INTEGERS[values.element_size()])
    bits &= bits_of_mask(mask, values.element_size())


def bits_of_mask(mask: Tensor, n_bytes: int) -> Tensor:
    """Integers of `n_bytes` in the shape of a bool mask: all ones where it is set, and no bit elsewhere."""
    if mask.device.type == "cpu":  # numpy does it in one step
        return torch.from_numpy(np.negative(mask.view(torch.int8).numpy(), dtype=f"i{n_bytes}"))
    return mask.to(_INTEGERS[n_bytes]).neg_()  # -1 is all ones


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
    return grid.kept(task.budget)


def _grouped(scores: Tensor, scope: Scope) -> Tensor:
    """[out, in] -> [groups, scores of each]: groups are rows, or the whole matrix is one."""
    return scores if scope is Scope.ROW else scores.reshape(1, -1)


def _keep_by_row(scores: Tensor, n_kept: int, ordered: Tensor | None = None) -> Tensor:
    rows, columns = scores.shape
    base, extra = divmod(n_kept, rows)
    if base == columns:
        return torch.ones_like(scores, dtype=torch.bool)
    row_kept = torch.full((rows,), base, device=scores.device)
    if extra:
        # The last score of each row that goes, and the first that stays, before the remainder is given out.
        next_best, threshold = _neighbours(scores, columns - base - 1, ordered)
        norms = torch.linalg.vector_norm(scores, dim=1, dtype=torch.float64)
        relative = next_best / norms.clamp_min(torch.finfo(torch.float64).tiny)
        favoured = torch.sort(relative, descending=True, stable=True).indices[:extra]
        row_kept[favoured] += 1
        if not base:
            threshold.fill_(torch.inf)
        threshold[favoured] = next_best[favoured]
    elif base:
        threshold = _kth_smallest(scores, columns - base, ordered)
    else:
        return torch.zeros_like(scores, dtype=torch.bool)
    mask = _at_least(scores, threshold)
    if _count(mask) > n_kept:  # as many as asked for from every row, and more where scores are equal
        _drop_last_ties_(mask, scores, threshold, row_kept)
    return mask


def _at_least(scores: Tensor, threshold: Tensor) -> Tensor:
    """Which entries of each row are not below its `threshold`, bool."""
    if scores.device.type == "cpu":  # numpy compares twice as fast as torch
        return torch.from_numpy(scores.numpy() >= threshold.numpy()[:, None])
    return scores >= threshold[:, None]


def _count(mask: Tensor) -> int:
    """Entries that are set."""
    return int(np.count_nonzero(mask.numpy()) if mask.device.type == "cpu" else mask.sum())


def _drop_last_ties_(mask: Tensor, scores: Tensor, threshold: Tensor, row_kept: Tensor) -> None:
    """Clear entries of `mask` whose score equals their row's threshold, the last ones, until counts are met.

    `mask` and `scores` [rows, columns]; `threshold` and the counts `row_kept` [rows].
    """
    # As bytes and in int32: a third of the time that a sum of bools takes on a CPU.
    surplus = mask.view(torch.uint8).sum(dim=1, dtype=torch.int32) - row_kept
    crowded = surplus.nonzero().flatten()
    ties = (scores[crowded] == threshold[crowded, None]).nonzero()  # [ties, 2], rows rising, then columns
    rows, columns = ties.unbind(dim=1)
    last_of_row = torch.bincount(rows, minlength=len(crowded)).cumsum(dim=0)
    # 1 for the last tie of a row, 2 for the one before it, ...
    rank_from_end = last_of_row[rows] - torch.arange(len(rows), device=rows.device)
    gone = rank_from_end <= surplus[crowded][rows]
    mask[crowded[rows[gone]], columns[gone]] = False


def _kth_smallest(scores: Tensor, rank: int, ordered: Tensor | None = None) -> Tensor:
    """The rank-th smallest (from 0) entry of each row, [rows]."""
    if ordered is not None:
        return ordered[:, rank].clone()
    if scores.device.type == "cpu":  # numpy's partition around one place is ten times faster than torch's
        return torch.from_numpy(np.partition(scores.numpy(), rank, axis=1)[:, rank].copy())
    return scores.kthvalue(rank + 1, dim=1).values


def _neighbours(scores: Tensor, rank: int, ordered: Tensor | None) -> tuple[Tensor, Tensor]:
    """The rank-th smallest (from 0) of each row, and the next one (after the last, itself), [rows] each."""
    if rank + 1 == scores.shape[1]:
        at = _kth_smallest(scores, rank, ordered)
        return at, at.clone()
    if ordered is not None:
        return ordered[:, rank].clone(), ordered[:, rank + 1].clone()
    if scores.device.type == "cpu":
        parted = np.partition(scores.numpy(), rank, axis=1)
        return torch.from_numpy(parted[:, rank].copy()), torch.from_numpy(parted[:, rank + 1 :].min(axis=1))
    return _kth_smallest(scores, rank), _kth_smallest(scores, rank + 1)
