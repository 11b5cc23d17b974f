"""Streamed sums, counts, ranks and histograms against numpy on the whole array."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from owl_compress.walk import scores as scores_module
from owl_compress.walk.scores import ScoredWeight, ScorePool, pooled

SHAPES = [(1, 1), (3, 5), (16, 32), (7, 300)]


def pool_of(*shapes: tuple[int, int], dtype: torch.dtype = torch.float32, seed: int = 0) -> ScorePool:
    """Weights of mixed signs and, some of them, zeros; a scale with a zero in it."""
    generator = torch.Generator().manual_seed(seed)
    members = []
    for rows, columns in shapes:
        weight = torch.randn(rows, columns, generator=generator)
        weight[torch.rand(rows, columns, generator=generator) < 0.05] = 0.0
        scale = torch.rand(columns, generator=generator) * 10
        if columns > 2:
            scale[1] = 0.0
        members.append(ScoredWeight(weight.to(dtype), scale))
    return ScorePool(tuple(members))


def all_scores(pool: ScorePool) -> np.ndarray[Any, Any]:
    """Every score of the pool, float32, by numpy alone."""
    parts = [np.abs(member.weight.float().numpy()) * member.scale.numpy()[None, :] for member in pool.members]
    return np.concatenate([part.ravel() for part in parts])


@pytest.fixture(params=[3, 1 << 20], ids=["row by row", "at once"])
def _chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores_module, "_CHUNK", request.param)


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"])
def pool(request: pytest.FixtureRequest, _chunk: None) -> ScorePool:
    return pool_of(*SHAPES, dtype=request.param)


def test_size_and_mean(pool: ScorePool) -> None:
    expected = all_scores(pool)
    assert pool.size == expected.size
    assert pool.mean == pytest.approx(expected.astype(np.float64).mean(), rel=1e-12)


@pytest.mark.parametrize("threshold", [0.0, 0.001, 1.0, 3.3, 1e9])
def test_count_above(pool: ScorePool, threshold: float) -> None:
    assert pool.count_above(threshold) == int((all_scores(pool) > threshold).sum())


def test_a_threshold_between_two_floats_is_not_rounded_across_a_score() -> None:
    # 0.1 is not a float32: the nearest one, 0.100000001..., is above it and so counts as above it.
    pool = ScorePool((ScoredWeight(torch.tensor([[0.1]]), torch.ones(1)),))
    assert float(np.float32(0.1)) > 0.1
    assert pool.count_above(0.1) == 1
    assert pool.count_above(float(np.float32(0.1))) == 0


def test_every_order_statistic(pool: ScorePool) -> None:
    expected = np.sort(all_scores(pool))
    for k in {1, 2, 50, expected.size // 2, expected.size - 1, expected.size}:
        assert pool.kth_smallest(k) == expected[k - 1]


def test_median_is_the_lower_one(pool: ScorePool) -> None:
    assert pool.median == float(torch.from_numpy(all_scores(pool)).median())
    even = ScorePool((ScoredWeight(torch.tensor([[4.0, 1.0], [2.0, 3.0]]), torch.ones(2)),))
    assert even.median == 2.0


@given(values=st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=40), data=st.data())
@settings(max_examples=200)
def test_ranks_and_counts_of_any_numbers(values: list[float], data: st.DataObject) -> None:
    weight = torch.tensor([values])
    pool = ScorePool((ScoredWeight(-weight, torch.ones(len(values))),))
    k = data.draw(st.integers(1, len(values)))
    threshold = data.draw(st.sampled_from(values) | st.floats(0, 2.0**100))
    assert pool.kth_smallest(k) == sorted(values)[k - 1]
    assert pool.count_above(threshold) == sum(value > threshold for value in values)


def test_all_equal_scores() -> None:
    pool = ScorePool((ScoredWeight(torch.full((4, 8), -0.3), torch.full((8,), 2.0)),))
    score = float(np.float32(0.3) * np.float32(2.0))
    assert pool.mean == score
    assert pool.median == pool.kth_smallest(1) == pool.kth_smallest(32) == score
    assert pool.count_above(pool.mean) == 0
    assert sum(pool.histogram().counts) == 32
    assert np.count_nonzero(pool.histogram().counts) == 1


def test_all_zero_scores() -> None:
    pool = ScorePool((ScoredWeight(torch.zeros(4, 8), torch.ones(8)),))
    assert pool.mean == pool.median == 0.0
    assert pool.count_above(0.0) == 0
    histogram = pool.histogram()
    assert (histogram.n_zero, histogram.counts) == (32, ())


def test_the_histogram_counts_every_score_near_its_own_bin(pool: ScorePool) -> None:
    histogram = pool.histogram(bins_per_octave=8)
    expected = all_scores(pool)
    assert histogram.total == expected.size
    assert histogram.n_zero == int((expected == 0).sum())
    assert histogram.counts[0] > 0
    assert histogram.counts[-1] > 0
    # A score is at most 2^-7 of itself away from the midpoint it is binned by: for every edge, the count
    # below it lies between the counts below 1 - 2^-7 and above 1 + 2^-7 of it.
    below = histogram.n_zero
    for index, count in enumerate(histogram.counts):
        below += count
        edge = 2.0 ** ((histogram.first_bin + index + 1) / 8)
        assert (
            int((expected < edge * (1 - 2**-7)).sum()) <= below <= int((expected < edge * (1 + 2**-7)).sum())
        )


def test_a_histogram_of_powers_of_two_is_exact() -> None:
    # 1.5 * 2^k is far from every edge of one bin per octave
    weight = torch.tensor([[1.5 * 2.0**k for k in (-3, -3, 0, 2, 2, 2)]])
    histogram = ScorePool((ScoredWeight(weight, torch.ones(6)),)).histogram(bins_per_octave=1)
    assert histogram.first_bin == -3
    assert histogram.counts == (2, 0, 0, 1, 0, 3)


def test_a_pool_of_pools_is_one_population() -> None:
    parts = [pool_of((4, 6), seed=seed) for seed in range(3)]
    whole = pooled(parts)
    values = np.concatenate([all_scores(part) for part in parts])
    assert whole.size == 72
    assert whole.mean == pytest.approx(values.astype(np.float64).mean(), rel=1e-12)
    assert whole.kth_smallest(30) == np.sort(values)[29]
    assert whole.count_above(1.5) == int((values > 1.5).sum())


def test_a_transposed_weight_scores_like_any_other() -> None:
    weight, scale = torch.randn(6, 4), torch.rand(4)
    straight = ScorePool((ScoredWeight(weight.clone(), scale),))
    turned = ScorePool((ScoredWeight(weight.t().contiguous().t(), scale),))
    assert turned.mean == pytest.approx(straight.mean, rel=1e-12)
    assert turned.median == straight.median
    assert turned.histogram() == straight.histogram()


@pytest.mark.usefixtures("_chunk")
def test_weights_are_left_as_they_are() -> None:
    pool = pool_of((16, 32))
    before = pool.members[0].weight.clone()
    pool.histogram()
    for _ in pool.members[0].magnitudes():
        assert pool.mean >= 0
    assert torch.equal(pool.members[0].weight, before)
