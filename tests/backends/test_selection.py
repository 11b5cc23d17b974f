"""Masks against sorting: counts exact, ties by place."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from owl_compress.backends.selection import (
    Scope,
    in_order,
    keep_mask,
    keep_mask_of_groups,
    kept_per_group,
    zero_outside_,
)
from owl_compress.compression.tasks import LinearTask
from owl_compress.documents.units import KeptOfGrid
from owl_compress.errors import RequestError
from owl_compress.models.structure import LinearSite

Array = np.ndarray[Any, Any]


def best(scores: Array, n: int) -> Array:
    """Mask of the `n` highest of a row; of equal ones the first. A stable sort, nothing clever."""
    mask = np.zeros(scores.shape, dtype=bool)
    mask[np.argsort(-scores, kind="stable")[:n]] = True
    return mask


def by_row(scores: Array, n_kept: int) -> Array:
    base, extra = divmod(n_kept, len(scores))
    counts = np.full(len(scores), base)
    if extra:
        next_best = np.sort(scores, axis=1)[:, ::-1][:, base].astype(np.float64)
        norms = np.sqrt((scores.astype(np.float64) ** 2).sum(axis=1))
        relative = np.divide(next_best, norms, out=np.zeros_like(next_best), where=norms > 0)
        counts[np.argsort(-relative, kind="stable")[:extra]] += 1
    return np.stack([best(row, count) for row, count in zip(scores, counts, strict=True)])


def by_linear(scores: Array, n_kept: int) -> Array:
    return best(scores.ravel(), n_kept).reshape(scores.shape)


@st.composite
def scores_and_count(draw: st.DrawFn) -> tuple[Array, int]:
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    # few different values: ties everywhere
    values = draw(st.lists(st.integers(0, 4), min_size=rows * columns, max_size=rows * columns))
    return np.array(values, dtype=np.float32).reshape(rows, columns), draw(st.integers(0, rows * columns))


@given(scores_and_count())
@settings(max_examples=300)
def test_masks_are_those_of_a_stable_sort(case: tuple[Array, int]) -> None:
    scores, n_kept = case
    for scope, oracle in ((Scope.ROW, by_row), (Scope.LINEAR, by_linear), (Scope.MODEL, by_linear)):
        mask = keep_mask(torch.from_numpy(scores), n_kept, scope)
        ordered = in_order(torch.from_numpy(scores), scope)
        assert torch.equal(keep_mask(torch.from_numpy(scores), n_kept, scope, ordered), mask)
        assert mask.dtype == torch.bool
        assert int(mask.sum()) == n_kept
        assert np.array_equal(mask.numpy(), oracle(scores, n_kept)), scope


@pytest.mark.parametrize("share", [0.0, 0.003, 0.37, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("scope", Scope)
def test_masks_of_larger_matrices(scope: Scope, share: float) -> None:
    scores = torch.rand(50, 301, generator=torch.Generator().manual_seed(0))
    n_kept = int(share * scores.numel())
    oracle = by_row if scope is Scope.ROW else by_linear
    mask = keep_mask(scores, n_kept, scope)
    assert int(mask.sum()) == n_kept
    assert np.array_equal(mask.numpy(), oracle(scores.numpy(), n_kept))


@pytest.mark.parametrize("scope", Scope)
def test_all_equal_scores_keep_the_first(scope: Scope) -> None:
    mask = keep_mask(torch.ones(4, 10), 22, scope)
    assert int(mask.sum()) == 22
    kept = [6, 6, 5, 5] if scope is Scope.ROW else [10, 10, 2, 0]
    assert mask.sum(dim=1).tolist() == kept
    assert all(mask[row, :n].all() for row, n in enumerate(kept))


def test_rows_differ_by_one_at_most() -> None:
    mask = keep_mask(torch.rand(7, 20), 7 * 11 + 3, Scope.ROW)
    assert sorted(mask.sum(dim=1).tolist()) == [11] * 4 + [12] * 3


@given(
    rows=st.integers(1, 4),
    groups=st.integers(1, 4),
    group=st.sampled_from([1, 2, 4, 8]),
    data=st.data(),
)
@settings(max_examples=100)
def test_every_group_keeps_its_highest(rows: int, groups: int, group: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, group))
    size = rows * groups * group
    values = data.draw(st.lists(st.integers(0, 5), min_size=size, max_size=size))
    scores = np.array(values, dtype=np.float32).reshape(rows, groups * group)
    mask = keep_mask_of_groups(torch.from_numpy(scores), kept, group).numpy()
    for row in range(rows):
        for start in range(0, groups * group, group):
            part = slice(start, start + group)
            assert np.array_equal(mask[row, part], best(scores[row, part], kept))


def test_the_pattern_follows_from_the_density() -> None:
    site = LinearSite("a", "other", nn.Linear(32, 4))
    assert [kept_per_group(LinearTask(site, n / 8), KeptOfGrid(kept_of=8)) for n in range(9)] == list(
        range(9)
    )
    message = re.escape("a has 32 inputs, which groups of 5 do not divide: choose another M or --skip a")
    with pytest.raises(RequestError, match=message):
        kept_per_group(LinearTask(site, 0.4), KeptOfGrid(kept_of=5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_what_is_outside_of_a_mask_becomes_zero_and_the_rest_keeps_its_bits(dtype: torch.dtype) -> None:
    values = torch.tensor([[-1.5, torch.nan, torch.inf], [-0.0, 3.0, -torch.inf]], dtype=dtype)
    mask = torch.tensor([[True, False, False], [True, False, True]])
    for found in (values.clone(), values.t().clone().t()):  # in rows, in columns
        zero_outside_(found, mask)
        assert found.tolist() == [[-1.5, 0.0, 0.0], [0.0, 0.0, -torch.inf]]
        assert found.signbit().tolist() == [[True, False, False], [True, False, True]]
