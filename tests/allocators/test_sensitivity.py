"""The allocator that divides by measured damages: optimality, exactness, and what it refuses."""

from fractions import Fraction
from itertools import product

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.optimize import minimize

from owl_compress.allocators import Target, allocate
from owl_compress.allocators.damage import DamageCurve
from owl_compress.documents.sensitivity import PartKind
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.errors import RequestError

quick = settings(max_examples=25)
OF_8 = KeptOfGrid(kept_of=8)
LIGHT, HEAVY = {0.2: 0.5, 0.5: 0.1, 1.0: 0.0}, {0.2: 5.0, 0.5: 1.0, 1.0: 0.0}
COARSE = {0.25: 1.0, 0.5: 0.5, 1.0: 0.0}
SMALL = {"attn.o": (16, 8), "mlp.down": (8, 32)}


def by_block(plan):
    return [block.value for block in plan.per_block]


def cubes(*weights, levels=(0.1, 0.3, 0.5, 0.7, 0.9, 1.0)):
    return {str(i): {x: w * (1 - x) ** 3 for x in levels} for i, w in enumerate(weights)}


def test_densities_off_a_grid_equalise_the_price_of_a_weight(make_profile):
    plan = allocate(make_profile(cubes(1.0, 4.0, 16.0)), "sensitivity", Target.from_sparsity(0.5))
    # d/dx w (1 - x)^3 is equal: 1 - x is in proportion to w^-1/2.
    removed = 1.5 * np.array([1, 0.5, 0.25]) / 1.75
    assert by_block(plan) == pytest.approx((1 - removed).tolist(), abs=2e-3)
    assert plan.achieved == pytest.approx(0.5, abs=1e-15)


def test_densities_off_a_grid_are_the_least_sum_between_unequal_curves(make_profile):
    points = [
        {0.1: 8.0, 0.4: 2.0, 0.7: 0.3, 1.0: 0},
        {0.2: 3.0, 0.6: 0.5, 1.0: 0},
        {0.1: 1.0, 0.5: 0.4, 1.0: 0},
    ]
    shapes = [SMALL, {"mlp.down": (8, 8)}, {"attn.o": (32, 32)}]
    profile = make_profile({str(i): one for i, one in enumerate(points)}, shapes=shapes)
    plan = allocate(profile, "sensitivity", Target.from_sparsity(0.5))
    curves = [DamageCurve(tuple(one), tuple(one.values())) for one in points]
    sizes = np.array([384, 64, 1024])

    def damage(values):
        return sum(float(curve.between(np.array([x]))[0]) for curve, x in zip(curves, values, strict=True))

    found = damage(by_block(plan))
    assert plan.allocator.parameters["predicted_damage"] == pytest.approx(found)
    for start in ([0.5] * 3, [0.8, 0.8, 0.37], [0.3, 0.5, 0.58]):
        other = minimize(
            damage, start, bounds=[(0.1, 1), (0.2, 1), (0.1, 1)],
            constraints={"type": "eq", "fun": lambda x: (x * sizes).sum() / sizes.sum() - 0.5},
        )  # fmt: skip
        assert found <= other.fun * (1 + 2e-4)


@quick
@given(
    weights=st.lists(st.floats(0, 1e80), min_size=1, max_size=6),
    density=st.floats(0.1, 1),
    bounds=st.tuples(st.floats(0.1, 1), st.floats(0.1, 1)).map(sorted),
)
def test_any_mean_is_met_exactly_within_the_bounds(weights, density, bounds, make_profile):
    low, high = bounds
    mean = min(max(density, low), high)
    target = Target(Unit.DENSITY, mean, low=low, high=high)
    plan = allocate(make_profile(cubes(*weights)), "sensitivity", target)
    total = sum(Fraction(b.value) * b.n_weights for b in plan.budgets)
    assert abs(total / sum(b.n_weights for b in plan.budgets) - Fraction(mean)) < 1e-12
    assert all(low <= b.value <= high for b in plan.budgets)


def test_a_part_that_no_level_damages_keeps_the_least(make_profile):
    profile = make_profile({"0": LIGHT, "1": {0.2: 0.0, 0.5: 0.0, 1.0: 0.0}})
    assert by_block(allocate(profile, "sensitivity", Target.from_sparsity(0.5))) == pytest.approx([0.8, 0.2])


def test_where_nothing_is_damaged_all_get_the_same(make_profile):
    profile = make_profile({str(i): {0.2: 0.0, 1.0: 0.0} for i in range(3)})
    assert by_block(allocate(profile, "sensitivity", Target.from_sparsity(0.5))) == [0.5] * 3


def tried_out(curves, most):
    """Least damage of any choice that spends no more; curves of groups of equal size."""
    fitting = [pick for pick in product(*curves) if sum(pick) <= most + 1e-9]
    best = max(map(sum, fitting))
    close = [pick for pick in fitting if sum(pick) > best - 1e-9]
    return min(sum(curve[x] for curve, x in zip(curves, pick, strict=True)) for pick in close)


@quick
@given(data=st.data(), n_blocks=st.integers(1, 4), kept=st.floats(2, 8))
def test_on_a_grid_the_sum_is_the_least_among_measured_levels(data, n_blocks, kept, make_profile):
    damages = st.lists(st.floats(0, 9), min_size=4, max_size=4).map(lambda d: sorted(d, reverse=True))
    curves = [
        dict(zip((0.125, 0.25, 0.375, 0.5), data.draw(damages), strict=True)) | {1.0: 0.0}
        for _ in range(n_blocks)
    ]
    profile = make_profile({str(i): one for i, one in enumerate(curves)}, grid=OF_8, shapes=SMALL)
    plan = allocate(profile, "sensitivity", Target.from_nm(f"{kept}:8"))
    values = by_block(plan)
    assert all(value in curve for value, curve in zip(values, curves, strict=True))
    assert plan.achieved <= kept / 8 + 1e-12
    damage = sum(curve[value] for curve, value in zip(curves, values, strict=True))
    best = tried_out(curves, kept / 8 * n_blocks)
    within_a_step = kept / 8 * n_blocks - sum(values) < 0.125
    assert damage == pytest.approx(best, rel=1e-9, abs=1e-12) or (within_a_step and damage <= best)


def test_no_order_is_forced_a_steep_part_may_keep_less_than_a_flat_one(make_profile):
    # The first is damaged more at every level, but there is more to save in the second.
    first = {0.25: 10.0, 0.5: 9.9, 1.0: 0.0}
    second = {0.25: 5.0, 0.5: 0.1, 1.0: 0.0}
    profile = make_profile({"0": first, "1": second}, grid=OF_8)
    assert by_block(allocate(profile, "sensitivity", Target.from_nm("3:8"))) == [0.25, 0.5]


def test_widths_are_levels_that_were_measured_and_never_above_the_budget(make_profile):
    attention, mlp = {1 / 4: 5.0, 2 / 4: 2.0, 1.0: 0.0}, {10 / 40: 1.0, 21 / 40: 0.4, 1.0: 0.0}
    parts = {f"{i}/{part}": points for i in range(2) for part, points in (("attn", attention), ("mlp", mlp))}
    profile = make_profile(parts, unit=Unit.WIDTH, kind=PartKind.SUBLAYER)
    plan = allocate(profile, "sensitivity", Target.from_prune_ratio(0.4))
    assert plan.grid is None
    assert plan.achieved <= 0.6
    for budget in plan.budgets:
        assert budget.value in (attention if ".attn." in budget.name else mlp)
    assert "granularity" not in plan.allocator.parameters
    assert plan.allocator.parameters["part"] == "sublayer"


def test_bits_of_linears_that_are_tied_are_chosen_together(make_profile):
    roles = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")
    damages = (0.001, 3.0, 0.2, 1.0, 0.1, 2.0, 0.7)
    parts = {
        f"0/{role}": {bits: damage * 4.0 ** (2 - bits) for bits in (2.0, 3.0, 4.0)}
        for role, damage in zip(roles, damages, strict=True)
    }
    profile = make_profile(parts, unit=Unit.BITS, kind=PartKind.LINEAR)
    plan = allocate(profile, "sensitivity", Target.from_bits(3))
    value = {budget.name.removeprefix("model.layers.0."): budget.value for budget in plan.budgets}
    assert value["attn.q_proj"] == value["attn.k_proj"] == value["attn.v_proj"] == 4
    assert value["mlp.gate_proj"] == value["mlp.up_proj"]
    assert plan.allocator.parameters["tie"] is True
    free = allocate(profile, "sensitivity", Target.from_bits(3, tie=False))
    assert free.value_of("model.layers.0.attn.q_proj") < free.value_of("model.layers.0.attn.k_proj")
    better = free.allocator.parameters["predicted_damage"]
    assert better <= plan.allocator.parameters["predicted_damage"]


def test_parts_are_joined_where_a_block_has_to_share_one_value(make_profile):
    parts = {"0/attn": LIGHT, "0/mlp": HEAVY, "1/attn": LIGHT, "1/mlp": LIGHT}
    profile = make_profile(parts, kind=PartKind.SUBLAYER)
    plan = allocate(profile, "sensitivity", Target.from_sparsity(0.5, granularity="block"))
    summed = make_profile(
        {"0": {x: LIGHT[x] + HEAVY[x] for x in LIGHT}, "1": {x: 2 * LIGHT[x] for x in LIGHT}}
    )
    whole = allocate(summed, "sensitivity", Target.from_sparsity(0.5))
    assert by_block(plan) == pytest.approx(by_block(whole), abs=5e-3)
    assert {budget.value for budget in plan.budgets if budget.block.endswith("0")} == {by_block(plan)[0]}


def test_pins_count_in_the_budget_and_in_the_prediction(make_profile):
    profile = make_profile({"0": HEAVY, "1": LIGHT, "2": LIGHT})
    target = Target.from_sparsity(0.5, pins={"model.layers.0": 0.5}, skips=("model.layers.2",))
    plan = allocate(profile, "sensitivity", target)
    assert by_block(plan) == pytest.approx([0.5, 0.5])
    assert plan.allocator.parameters["predicted_damage"] == pytest.approx(1.0 + 0.1)
    assert len(plan.skipped) == 7


def test_a_pin_at_a_level_that_was_not_measured_is_told(make_profile):
    profile = make_profile({"0": COARSE, "1": COARSE}, grid=OF_8)
    plan = allocate(profile, "sensitivity", Target.from_nm("4:8", pins={"model.layers.0": 0.375}))
    assert plan.allocator.parameters["n_parts_not_predicted"] == 1
    assert plan.allocator.parameters["predicted_damage"] == 0.5


def test_fitted_damages_are_counted(make_profile):
    profile = make_profile(
        {"0": {0.2: 0.5, 0.3: 0.6, 0.5: 0.1, 1.0: 0.0}, "1": {0.2: 1.0, 0.5: -0.1, 1.0: 0.0}}
    )
    assert allocate(profile, "sensitivity", Target.from_sparsity(0.5)).allocator.parameters["n_fitted"] == 3


def test_a_profile_serves_allocators_that_need_nothing_measured(make_profile):
    profile = make_profile({"0": LIGHT, "1": HEAVY})
    plan = allocate(profile, "uniform", Target.from_sparsity(0.5))
    assert by_block(plan) == [0.5, 0.5]
    assert plan.allocator.parameters["predicted_damage"] == pytest.approx(1.1)
    assert plan.report == profile.fingerprint
    other_unit = allocate(profile, "linear-depth", Target.from_bits(3))
    assert "predicted_damage" not in other_unit.allocator.parameters


def test_the_default_for_a_profile_is_sensitivity(make_profile):
    import owl_compress

    assert owl_compress.allocate(make_profile({"0": LIGHT}), sparsity=0.5).allocator.name == "sensitivity"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (Target.from_bits(3), "profile is of density off a grid and the target of bits"),
        (Target.from_nm("4:8"), "profile is of density off a grid and the target of N:8"),
        (Target.from_sparsity(0.9), "0.1 density is below 0.2 density, the mean of the lowest"),
        (Target.from_sparsity(0.5, low=0.1), "low 0.1 is below 0.2, the lowest level measured"),
        (Target.from_sparsity(0.5, granularity="linear"), "--granularity linear divides model.layers.0"),
        (Target.from_sparsity(0.5, parts=("mlp",)), "is skipped but .* pin or skip them together"),
        (Target.from_sparsity(0.5, pins={"*.0.attn.q_proj": 0.5}), "set to 0.5 but .* left to the allocator"),
    ],
)  # fmt: skip
def test_what_a_profile_cannot_answer_is_refused(target, said, make_profile):
    with pytest.raises(RequestError, match=said):
        allocate(make_profile({"0": LIGHT, "1": HEAVY}), "sensitivity", target)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (Target.from_nm("2:4"), "profile is of N:8 and the target of N:4"),
        (Target.from_nm("1:8"), "1 of 8 is below 2 of 8"),
        (Target.from_nm("3:8", low=0.125), "low 0.125 is below 0.25"),
        (Target.from_nm("6:8", low=0.625, high=0.875), r"no level measured of .* \(0.25, 0.5, 1\)"),
        (Target.from_nm("6:8", high=0.75), "6 of 8 is above 4 of 8, the mean of the highest"),
        (Target.from_nm("4:8", solver="optimal"), "a solver for them: drop --solver"),
    ],
)  # fmt: skip
def test_a_grid_that_was_not_measured_is_refused(target, said, make_profile):
    profile = make_profile({"0": COARSE, "1": COARSE}, grid=OF_8)
    with pytest.raises(RequestError, match=said):
        allocate(profile, "sensitivity", target)


def test_bits_that_were_not_measured_are_refused(make_profile):
    profile = make_profile({"0": {3.0: 1.0, 4.0: 0.5}}, unit=Unit.BITS)
    with pytest.raises(RequestError, match=r"2 bits were not measured: .* \(--bit-choices 3,4\)"):
        allocate(profile, "sensitivity", Target.from_bits(3.5))


def test_one_level_is_too_few_to_read_between(make_profile):
    with pytest.raises(RequestError, match=r"span 0.5 to 0.5: densities off a grid need two at least"):
        allocate(make_profile({"0": {0.5: 1.0}}), "sensitivity", Target.from_sparsity(0.5))


def test_a_linear_of_no_part_is_refused_unless_it_is_left_alone(make_profile):
    profile = make_profile({"0/mlp": LIGHT}, kind=PartKind.SUBLAYER)
    with pytest.raises(RequestError, match=r"attn.q_proj is in no part of the profile: .* --skip"):
        allocate(profile, "sensitivity", Target.from_sparsity(0.5))
    plan = allocate(profile, "sensitivity", Target.from_sparsity(0.5, parts=("mlp",)))
    assert len(plan.budgets) == 3


def test_widths_without_a_common_level_are_not_joined(make_profile):
    parts = {"0/attn": {0.25: 1.0, 0.75: 0.1, 1.0: 0.0}, "0/mlp": {0.3: 1.0, 0.7: 0.1, 1.0: 0.0}}
    profile = make_profile(parts, unit=Unit.WIDTH, kind=PartKind.SUBLAYER)
    with pytest.raises(RequestError, match="fewer than two levels were measured of all of them"):
        allocate(profile, "sensitivity", Target.from_prune_ratio(0.5, granularity="block"))


def test_a_report_and_a_profile_are_told_apart(make_report, make_profile):
    with pytest.raises(RequestError, match="reads the damages of a sensitivity profile"):
        allocate(make_report([0.1, 0.2]), "sensitivity", Target.from_sparsity(0.5))
    with pytest.raises(RequestError, match="reads the metrics of a report, and this is"):
        allocate(make_profile({"0": LIGHT}), "owl", Target.from_sparsity(0.5))


def test_an_allocator_that_says_nothing_of_damage_reads_none(make_report, make_profile):
    from owl_compress.allocators import reads_damage
    from owl_compress.allocators.uniform import Uniform

    class Theirs(Uniform):
        @property
        def reads_damage(self):
            raise AttributeError

    assert not reads_damage(Theirs())
    for source in (make_report([0.1]), make_profile({"0": LIGHT})):
        assert by_block(allocate(source, Theirs(), Target.from_sparsity(0.5))) == [0.5]


def test_curves_far_from_convex_never_do_worse_than_equal_shares(make_profile):
    levels = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
    steps = {
        str(i): dict(zip(levels, (*4 * (a,), *3 * (a / 100,), 0.0), strict=True))
        for i, a in enumerate((0.49905, 0.62832, 0.29937))
    }
    target = Target.from_sparsity(0.55)
    found, equal = (allocate(make_profile(steps), name, target) for name in ("sensitivity", "uniform"))
    predicted = [plan.allocator.parameters["predicted_damage"] for plan in (found, equal)]
    assert predicted[0] <= predicted[1]
    assert found.achieved == pytest.approx(0.45, abs=1e-15)


def test_a_level_that_is_the_lowest_but_for_rounding_is_predicted(make_profile):
    profile = make_profile({str(i): {0.1: 0.04, 0.5: 0.01, 1.0: 0.0} for i in range(3)})
    target = Target.from_sparsity(0.5, pins={"model.layers.0": 0.9}, skips=("model.layers.2",))
    plan = allocate(profile, "sensitivity", target)
    assert plan.allocator.parameters["predicted_damage"] > 0.04
    assert "n_parts_not_predicted" not in plan.allocator.parameters
