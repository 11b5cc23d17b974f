"""The solvers of the knapsack against trying everything."""

from itertools import product
from math import prod

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings

from owl_compress.allocators.base import Group, LevelCosts
from owl_compress.allocators.branching import cheapest
from owl_compress.allocators.knapsack import Knapsack, least_cost
from owl_compress.allocators.target import Target
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError

quick = settings(max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])


def tried_out(problem):
    """Least cost, and the spends allowed: within a step of the budget, or else the fullest there is."""
    every = [
        (sum(s[k] for s, k in zip(problem.spends, ks, strict=True)),
         sum(c[k] for c, k in zip(problem.costs, ks, strict=True)))
        for ks in product(*(range(len(s)) for s in problem.spends))
    ]  # fmt: skip
    fitting = [one for one in every if one[0] <= problem.most]
    close = [one for one in fitting if one[0] > problem.most - problem.step]
    close = close or [one for one in fitting if one[0] == max(spend for spend, _ in fitting)]
    return min(cost for _, cost in close), {spend for spend, _ in close}


@st.composite
def problems(draw):
    spends, costs = [], []
    for _ in range(draw(st.integers(1, 5))):
        size = draw(st.sampled_from([1, 2, 3, 5, 8]))
        levels = sorted(draw(st.sets(st.integers(0, 8), min_size=1, max_size=4)))
        spends.append(tuple(size * level for level in levels))
        costs.append(tuple(sorted((draw(st.floats(0, 100)) for _ in levels), reverse=True)))
    least = sum(spend[0] for spend in spends)
    most = draw(st.integers(least, max(least, sum(spend[-1] for spend in spends))))
    return Knapsack(tuple(spends), tuple(costs), most)


def check(problem, chosen, tolerance=1e-9):
    spent = sum(spend[k] for spend, k in zip(problem.spends, chosen, strict=True))
    price = sum(cost[k] for cost, k in zip(problem.costs, chosen, strict=True))
    best, spends = tried_out(problem)
    assert spent in spends
    assert price <= best + tolerance * max(best, 1e-300)


@quick
@given(problem=problems())
def test_the_table_finds_the_least_cost(problem):
    check(problem, problem.solve())


@quick
@given(problem=problems())
def test_branch_and_bound_finds_the_least_cost(problem):
    least = problem.most - problem.step + 1
    check(problem, cheapest(problem.spends, problem.costs, least, problem.most), tolerance=1e-8)


@pytest.mark.parametrize("by", ["table", "milp"])
def test_one_absurd_damage_does_not_blur_the_others(by):
    costs = ((1e90, 3.0, 0.0), (2.0, 1.0, 0.0), (4.0, 1.5, 0.0))
    problem = Knapsack(((0, 1, 2),) * 3, costs, 3)
    chosen = problem.solve() if by == "table" else cheapest(problem.spends, problem.costs, 3, 3)
    check(problem, chosen)


@pytest.mark.parametrize("unlike", [1, 2])
def test_both_solvers_agree_on_thirty_groups_of_unequal_size(unlike):
    rng = np.random.default_rng(unlike)
    sizes = rng.choice([4, 9, 25], 30)
    spends = tuple(tuple(int(size) * level for level in (2, 3, 4, 8)) for size in sizes)
    costs = tuple(tuple(np.sort(rng.random(4) ** 3)[::-1].tolist()) for _ in sizes)
    problem = Knapsack(spends, costs, int(3.3 * sizes.sum()))
    picks = problem.solve(), cheapest(spends, costs, problem.most - problem.step + 1, problem.most)
    one, other = (sum(cost[k] for cost, k in zip(costs, pick, strict=True)) for pick in picks)
    assert one == pytest.approx(other, rel=1e-8)


def group(name, n_weights):
    return Group(name, n_weights, 0, {}, ())


WHOLE_HEADS = tuple(3 * 64 * 576 * 4 * heads / (12 * 64 * 576 * 4) for heads in (1, 2, 3, 4))


@pytest.mark.parametrize("n_channels", [1536, 1537])  # with a large common divisor, and with a small one
def test_widths_are_chosen_in_whole_weights(n_channels):
    sizes = (12 * 64 * 576 * 4, 3 * 576 * n_channels)
    groups = [group(f"b.{i}.{part}", size) for i in range(3) for part, size in zip("am", sizes, strict=True)]
    channels = tuple(k / n_channels for k in (400, 801, 1203, n_channels))
    levels = tuple((WHOLE_HEADS, channels)[i % 2] for i in range(6))
    costs = tuple(tuple((1 + i) * (1 - level) ** 2 for level in levels[i]) for i in range(6))
    target = Target(Unit.WIDTH, 0.6)
    values = least_cost(groups, LevelCosts(levels, costs), target)
    assert all(value in own for value, own in zip(values.tolist(), levels, strict=True))
    whole = [round(level * one.n_weights) for one, own in zip(groups, levels, strict=True) for level in own]
    assert whole == [
        pytest.approx(level * one.n_weights, abs=1e-6)
        for one, own in zip(groups, levels, strict=True)
        for level in own
    ]
    spends = tuple(
        tuple(round(level * one.n_weights) for level in own) for one, own in zip(groups, levels, strict=True)
    )
    problem = Knapsack(spends, costs, int(0.6 * sum(one.n_weights for one in groups)))
    chosen = [own.index(value) for own, value in zip(levels, values.tolist(), strict=True)]
    check(problem, chosen, tolerance=1e-8)


def test_a_budget_too_long_for_a_table_is_branched_on(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "owl_compress.allocators.knapsack.cheapest", lambda *given: asked.append(given) or cheapest(*given)
    )
    sizes = (10_000_019, 20_000_003, 30_000_001, 40_000_003)
    levels = ((2.0, 3.0, 4.0),) * 4
    costs = ((9.0, 4.0, 1.0), (8.0, 1.0, 0.5), (3.0, 2.0, 1.0), (7.0, 5.0, 0.0))
    groups = [group(f"b.{i}", size) for i, size in enumerate(sizes)]
    values = least_cost(groups, LevelCosts(levels, costs), Target.from_bits(3.1))
    assert len(asked) == 1
    spends = tuple(tuple(int(level * size) for level in (2, 3, 4)) for size in sizes)
    check(Knapsack(spends, costs, int(3.1 * sum(sizes))), [int(value) - 2 for value in values])


@quick
@given(data=st.data(), n_groups=st.integers(2, 6))
def test_the_order_of_the_groups_cannot_matter_even_between_equals(data, n_groups):
    groups = [group(f"b.{i}", data.draw(st.sampled_from([8, 16]))) for i in range(n_groups)]
    costs = [data.draw(st.sampled_from([(3.0, 1.0, 0.0), (2.0, 1.0, 0.0)])) for _ in groups]
    order = data.draw(st.permutations(range(n_groups)))
    target = Target.from_bits(2 + 2 * data.draw(st.floats(0, 1)))
    levels = ((2.0, 3.0, 4.0),) * n_groups
    values = least_cost(groups, LevelCosts(levels, tuple(costs)), target)
    turned = least_cost(
        [groups[i] for i in order], LevelCosts(levels, tuple(costs[i] for i in order)), target
    )
    assert [values[i] for i in order] == turned.tolist()


def test_of_equal_choices_the_first_name_keeps_more():
    groups = [group(f"b.{i}", 8) for i in (10, 2, 1)]
    levels, costs = ((2.0, 3.0),) * 3, ((1.0, 0.0),) * 3
    assert least_cost(groups, LevelCosts(levels, costs), Target.from_bits(2.5, (2, 3))).tolist() == [2, 2, 3]


@quick
@given(problem=problems())
def test_where_no_choice_comes_close_the_fullest_is_taken(problem):
    assume(prod(len(spend) for spend in problem.spends) > 1)
    spent = sum(spend[k] for spend, k in zip(problem.spends, problem.solve(), strict=True))
    assert spent <= problem.most
    assert spent in tried_out(problem)[1]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.25, "2 of 8 is below 3 of 8, the mean of the lowest .* or measure levels of 2:8 or less too"),
        (0.9, "7.2 of 8 is above 4 of 8, the mean of the highest .* or measure levels of 8:8 or more too"),
        (0.0625, "0.5 of 8 is below 3 of 8, .*: ask for that or more"),
    ],
)
def test_a_target_outside_the_span_names_the_levels_to_add(value, said):
    target = Target.from_nm(f"{8 * value:g}:8")
    choices = LevelCosts(((3 / 8, 4 / 8),) * 2, ((1.0, 0.5),) * 2)
    with pytest.raises(RequestError, match=said):
        least_cost([group("b.0", 8), group("b.1", 8)], choices, target)


@pytest.mark.parametrize("value", [0.40009, 0.400098, 0.5, 0.70001])
def test_levels_of_no_whole_number_of_weights_are_never_over_the_budget(value):
    groups = [group(f"b.{i}", size) for i, size in enumerate((8, 16, 3072, 6144))]
    choices = LevelCosts(((0.1, 0.4001, 0.45, 1.0),) * 4, ((5.0, 1.0, 0.9, 0.0),) * 4)
    values = least_cost(groups, choices, Target(Unit.WIDTH, value))
    sizes = np.array([one.n_weights for one in groups])
    assert (values * sizes).sum() / sizes.sum() <= value
