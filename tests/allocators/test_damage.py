"""Curves of damage: the fit, the law between the levels, and sums."""

from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.optimize import isotonic_regression

from owl_compress.allocators.damage import DamageCurve, fit, joined, never_rising
from owl_compress.documents.units import Unit

quick = settings(max_examples=50)
CURVE = DamageCurve((0.2, 0.5, 0.8, 1.0), (4.0, 1.0, 0.16, 0.0))


def at(curve, *levels):
    return curve.between(np.array(levels)).tolist()


@quick
@given(values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8))
def test_the_fit_is_the_isotonic_regression(values):
    fitted = never_rising(values)
    assert fitted == pytest.approx(isotonic_regression(values, increasing=False).x, abs=1e-9)
    assert all(a >= b - 1e-9 for a, b in pairwise(fitted))


def test_what_is_monotone_is_left_as_it_was_measured():
    assert fit((2.0, 3.0, 4.0), (0.3, 0.1, 0.1), Unit.BITS).damage == (0.3, 0.1, 0.1)


def test_a_rise_is_pooled_and_a_negative_damage_is_none():
    assert fit((2.0, 3.0, 4.0, 8.0), (0.5, 0.1, 0.3, -0.2), Unit.BITS).damage == (0.5, 0.2, 0.2, 0.0)


def test_a_part_as_it_is_has_no_damage_whatever_was_measured_before_it():
    assert fit((0.5, 0.9, 1.0), (1.0, -0.1, 0.0), Unit.DENSITY).damage == (1.0, 0.0, 0.0)
    assert fit((2.0, 3.0), (-0.1, 0.1), Unit.BITS).damage == (0.0, 0.0)


def test_between_levels_damage_is_a_power_of_what_is_removed():
    for (low, high), (more, less) in zip(pairwise((0.2, 0.5, 0.8)), pairwise((4.0, 1.0, 0.16)), strict=True):
        power = np.log(more / less) / np.log((1 - low) / (1 - high))
        middle = 0.6 * low + 0.4 * high
        assert at(CURVE, middle) == pytest.approx([less * ((1 - middle) / (1 - high)) ** power])
    assert at(CURVE, *CURVE.levels) == pytest.approx(CURVE.damage)


def test_towards_the_dense_end_the_last_power_goes_on():
    power = np.log(1 / 0.16) / np.log(0.5 / 0.2)
    assert at(CURVE, 0.9, 0.99) == pytest.approx([0.16 * 0.5**power, 0.16 * 0.05**power])


def test_the_power_at_the_dense_end_is_one_at_least_and_three_with_nothing_to_go_by():
    assert at(DamageCurve((0.4, 0.6, 1.0), (1.0, 1.0, 0.0)), 0.8) == pytest.approx([0.5])
    assert at(DamageCurve((0.5, 1.0), (1.0, 0.0)), 0.75) == pytest.approx([0.125])


def test_a_flat_end_without_damage_is_reached_like_the_dense_one():
    curve = DamageCurve((0.5, 0.7, 0.9, 1.0), (1.0, 0.0, 0.0, 0.0))
    assert at(curve, 0.6, 0.7, 0.8, 1.0) == pytest.approx([0.125, 0, 0, 0])
    assert at(DamageCurve((0.5, 1.0), (0.0, 0.0)), 0.5, 0.7) == [0, 0]


@quick
@given(
    damage=st.lists(st.floats(0, 1e90), min_size=1, max_size=5).map(lambda d: sorted(d, reverse=True)),
    levels=st.lists(st.floats(0, 1), min_size=2, max_size=9).map(sorted),
)
def test_the_law_never_rises_and_stays_within_what_was_measured(damage, levels):
    known = tuple(k / len(damage) for k in range(len(damage) + 1))
    found = at(DamageCurve(known, (*damage, 0.0)), *levels)
    assert np.isfinite(found).all()
    assert all(a >= b * (1 - 1e-9) for a, b in pairwise(found))
    assert max(found) <= damage[0] * (1 + 1e-9)


def test_a_sum_is_taken_at_common_levels():
    other = DamageCurve((0.5, 0.8, 0.9, 1.0), (2.0, 1.0, 0.5, 0.0))
    assert joined([CURVE, other], is_continuous=False) == DamageCurve((0.5, 0.8, 1.0), (3.0, 1.16, 0.0))
    assert joined([CURVE, DamageCurve((0.3,), (1.0,))], is_continuous=False) is None


def test_a_sum_off_a_grid_reads_each_curve_where_only_the_other_was_measured():
    other = DamageCurve((0.5, 0.9, 1.0), (2.0, 0.5, 0.0))
    both = joined([CURVE, other], is_continuous=True)
    assert both.levels == (0.5, 0.8, 0.9, 1.0)
    assert both.damage == pytest.approx([3.0, 0.16 + at(other, 0.8)[0], at(CURVE, 0.9)[0] + 0.5, 0.0])
