"""The laws of budget against equations and brute force."""

from itertools import product

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from owl_compress.allocators.base import Group
from owl_compress.allocators.budget import continuous, expected_error, optimal, proportional
from owl_compress.allocators.target import Target
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError

quick = settings(max_examples=30)


def _groups(sizes):
    return [Group(f"block.{i}", size, i, {}, ()) for i, size in enumerate(sizes)]


def test_a_law_that_keeps_the_mean_is_left_untouched():
    shape = np.array([-0.1, 0.0, 0.1])
    values = continuous(lambda t: t + shape, np.ones(3), 0.3, 0.0, 1.0)
    assert values.tolist() == (0.3 + shape).tolist()


def test_clipping_shifts_the_others_until_the_mean_holds():
    shape = np.array([-0.3, 0.0, 0.3])
    values = continuous(lambda t: t + shape, np.ones(3), 0.2, 0.0, 1.0)
    # The first is held at 0; the others share 0.6 and stay 0.3 apart.
    np.testing.assert_allclose(values, [0.0, 0.15, 0.45], atol=1e-14)


@pytest.mark.parametrize("density", [0.5, 0.3, 1 / 3, 0.1, 0.7000000000000001])
@pytest.mark.parametrize("n", [1, 3, 7])
def test_equal_values_are_the_target_itself(density, n):
    weights = np.array([3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 19.0])[:n]
    assert set(continuous(lambda t: t * np.full(n, 0.1), weights, density, 0.0, 1.0).tolist()) == {density}


def test_a_family_that_jumps_over_the_mean_shares_the_jump():
    values = continuous(
        lambda t: np.array([0.2, 0.4]) if t < 1.5 else np.array([0.4, 1.0]), np.ones(2), 0.5, 0.0, 1.0
    )
    np.testing.assert_allclose(values, [0.3, 0.7], atol=1e-15)


def test_a_mean_out_of_reach_is_refused_with_the_range():
    with pytest.raises(RequestError, match=r"average 0\.9 is out of reach.*gives 0\.5 to 0\.5"):
        continuous(lambda t: np.array([0.5, 0.5]), np.ones(2), 0.9, 0.0, 1.0)


@quick
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    wanted=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    importance=st.lists(st.integers(0, 5).map(float), min_size=4, max_size=4),
)
def test_the_optimal_plan_is_the_cheapest_of_all_that_spend_and_order_alike(sizes, wanted, importance):
    groups, weights = _groups(sizes), np.array(sizes)
    importance = np.array(importance[: len(sizes)]) + 0.5
    target = Target.from_bits(round(2.2 + 1.6 * wanted[0], 3), (2, 3, 4), solver="optimal")
    cost = importance * weights

    found = optimal(groups, importance, target)

    def total_error(plan):
        return float((cost * 4.0 ** -np.array(plan)).sum())

    cheapest = min(map(total_error, _lawful(target, weights, importance)))
    assert total_error(found) == pytest.approx(cheapest, rel=1e-5)
    assert tuple(found) in set(_lawful(target, weights, importance))


@quick
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    wanted=st.lists(st.floats(0.1, 0.9).map(lambda x: round(x, 4)), min_size=4, max_size=4),
)
def test_the_proportional_plan_is_the_nearest_of_all_that_spend_and_order_alike(sizes, wanted):
    groups, weights, wanted = _groups(sizes), np.array(sizes), np.array(wanted[: len(sizes)])
    mean = float(np.average(wanted, weights=weights))
    target = Target.from_nm(f"{4 * mean}:4", low=0.0)
    found = proportional(groups, wanted, np.zeros(len(sizes)), target)

    def distance(plan):
        return float((weights * (np.array(plan) - wanted) ** 2).sum())

    nearest = min(map(distance, _lawful(target, weights, wanted)))
    assert distance(found) == pytest.approx(nearest, rel=1e-4, abs=1e-6)


def _lawful(target, weights, key):
    """Every plan on the grid that the laws allow, by enumeration."""
    budget = target.value * weights.sum() * (1 + 1e-12)
    plans = [np.array(plan) for plan in product(target.levels, repeat=len(weights))]
    plans = [plan for plan in plans if plan @ weights <= budget]
    step = weights.min() * np.diff(target.levels).min()
    # Less than a step over, strictly: the slack that the budget has must not count as rest.
    close = [plan for plan in plans if plan @ weights > budget - step + 1e-9]
    ordered = [plan for plan in close if _in_order(plan, key, np.ones_like(weights))]
    by_size = [plan for plan in close if _in_order(plan, key, weights)]
    fullest = max(plan @ weights for plan in plans)
    last = [plan for plan in plans if plan @ weights == fullest and _in_order(plan, key, weights)]
    return [tuple(plan) for plan in ordered or by_size or last]


def _in_order(plan, key, sizes):
    n = range(len(plan))
    return all(plan[i] >= plan[j] for i in n for j in n if key[i] > key[j] and sizes[i] == sizes[j])


@quick
@given(wanted=st.lists(st.floats(0.2, 0.8), min_size=2, max_size=8, unique_by=lambda x: round(8 * x, 2) % 1))
def test_equal_sizes_are_rounded_by_largest_remainder(wanted):
    wanted = np.array(wanted)
    target = Target.from_nm(f"{8 * float(wanted.mean())}:8")
    found = proportional(_groups([5] * len(wanted)), wanted, np.zeros(len(wanted)), target)
    floors = np.floor(8 * wanted)
    extra = int(np.floor(8 * wanted.sum() * (1 + 1e-12))) - int(floors.sum())
    largest = np.argsort(-(8 * wanted - floors), kind="stable")[:extra]
    floors[largest] += 1
    # Where the last remainder is cut off by the floor of the budget, another split can be as near.
    assert ((found - wanted) ** 2).sum() <= ((floors / 8 - wanted) ** 2).sum() * (1 + 1e-4) + 1e-9
    assert found.sum() == floors.sum() / 8


@pytest.mark.parametrize("kept", range(1, 9))
def test_equal_blocks_and_whole_n_meet_the_average_exactly(kept):
    wanted = np.clip(kept / 8 + np.linspace(-0.1, 0.1, 7), 0, 1)
    wanted += kept / 8 - wanted.mean()
    found = proportional(_groups([64] * 7), wanted, np.zeros(7), Target.from_nm(f"{kept}:8"))
    assert found.mean() == kept / 8


def test_a_rest_that_no_plan_can_spend_is_left_as_small_as_possible():
    # 16 steps of 1 or 10 weights: 9 weights over the floor can only be spent as 8 of the small one.
    target = Target.from_nm(f"{9 * 8 / 88}:8", low=0.0)
    found = proportional(_groups([1, 10]), np.array([0.9, 0.02]), np.zeros(2), target)
    assert found.tolist() == [1.0, 0.0]


def test_ties_go_to_the_name_that_sorts_first_by_number():
    names = ["layers.10", "layers.9", "layers.2"]
    groups = [Group(name, 8, i, {}, ()) for i, name in enumerate(names)]
    found = proportional(groups, np.full(3, 3 + 1 / 3) / 8, np.zeros(3), Target.from_nm(f"{10 / 3}:8"))
    assert dict(zip(names, (8 * found).tolist(), strict=True)) == {
        "layers.2": 4,
        "layers.9": 3,
        "layers.10": 3,
    }


def test_uneven_bit_choices_are_spent_as_far_as_they_go():
    found = proportional(_groups([1] * 5), np.full(5, 3.0), np.zeros(5), Target.from_bits(3, (2, 8)))
    assert sorted(found) == [2, 2, 2, 2, 2]  # one 8 would already make the average 3.2


def test_four_times_less_error_per_bit_and_a_cube_for_density():
    np.testing.assert_allclose(expected_error(np.array([2.0, 3.0]), Unit.BITS), [1 / 16, 1 / 64])
    # Evenly spread scores: the error of the smallest share s is s³ of the whole, here counted.
    scores = (np.arange(100_000) + 0.5) / 100_000
    for density in (0.25, 0.5, 0.9):
        removed = scores[: round((1 - density) * scores.size)]
        share = (removed**2).sum() / (scores**2).sum()
        assert expected_error(np.array([density]), Unit.DENSITY)[0] == pytest.approx(share, rel=1e-3)


def test_optimal_refuses_a_negative_importance():
    with pytest.raises(RequestError, match=r"-1 for block\.1"):
        optimal(_groups([1, 1]), np.array([1.0, -1.0]), Target.from_bits(3, solver="optimal"))


def test_optimal_with_no_importance_at_all_is_uniform():
    found = optimal(_groups([4, 4, 4]), np.zeros(3), Target.from_nm("3:8", solver="optimal"))
    assert found.tolist() == [0.375] * 3
