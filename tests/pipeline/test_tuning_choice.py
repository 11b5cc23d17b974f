"""The best plan beside equal shares: what is more than chance, and what is said of it."""

from math import inf, nan

import numpy as np
import pytest
from scipy import stats

from owl_compress.documents.plan import AllocatorRecord, LinearBudget, Plan
from owl_compress.documents.units import BitsGrid, Unit
from owl_compress.pipeline.tuning_choice import Damages, baseline_in_words, beside, in_words

HARD_AND_EASY = (1.0, 5.0, 2.0, 9.0, 3.0, 7.0)
"""Damage of equal shares by window: windows differ far more than plans do."""


def less_by(*gains: float) -> Damages:
    return Damages(tuple(ours - gain for ours, gain in zip(HARD_AND_EASY, gains, strict=True)))


def test_it_is_the_paired_test_of_scipy() -> None:
    best = less_by(0.3, 0.1, 0.2, 0.4, 0.1, 0.2)
    found = beside(Damages(HARD_AND_EASY), best, n_rivals=1)
    theirs = stats.ttest_rel(HARD_AND_EASY, best.by_window, alternative="greater")
    assert found.gain / found.standard_error == pytest.approx(theirs.statistic)
    assert found.needed == pytest.approx(stats.t.isf(0.05, df=5))
    assert theirs.pvalue < 0.05
    assert found.is_beyond_chance


def test_what_windows_differ_by_is_no_noise() -> None:
    assert beside(Damages(HARD_AND_EASY), less_by(*[0.1, 0.11] * 3), 3).is_beyond_chance


def test_the_best_of_several_has_to_gain_more() -> None:
    best = less_by(0.3, -0.1, 0.2, 0.4, -0.1, 0.2)
    single, of_many = (beside(Damages(HARD_AND_EASY), best, count) for count in (1, 3))
    assert single.needed < of_many.needed
    assert (single.is_beyond_chance, of_many.is_beyond_chance) == (False, False)
    sure = less_by(0.3, 0.0, 0.2, 0.4, 0.0, 0.2)
    found = [beside(Damages(HARD_AND_EASY), sure, count).is_beyond_chance for count in (1, 3)]
    assert found == [True, False]


def test_plans_that_are_alike_are_taken_for_better_no_more_often_than_said() -> None:
    draw = np.random.default_rng(0)
    windows = draw.exponential(size=(2000, 16, 1))
    damages = windows * (1 + 0.05 * draw.standard_normal((2000, 16, 4)))  # equal shares and three rivals
    taken = 0
    for trial in damages:
        rivals = sorted(
            (Damages(tuple(trial[:, rival].tolist())) for rival in (1, 2, 3)), key=lambda one: one.mean
        )
        taken += beside(Damages(tuple(trial[:, 0].tolist())), rivals[0], 3).is_beyond_chance
    assert taken / 2000 < 0.06


def test_no_difference_is_no_gain() -> None:
    found = beside(Damages(HARD_AND_EASY), Damages(HARD_AND_EASY), 1)
    assert (found.gain, found.standard_error, found.is_beyond_chance) == (0.0, 0.0, False)


@pytest.mark.parametrize(("window", "recorded"), [(nan, None), (inf, None), (2.0, 1.5)])
def test_what_is_no_number_is_beyond_every_number(window: float, recorded: float | None) -> None:
    damages = Damages((1.0, window))
    assert damages.recorded == recorded
    assert damages.mean == (recorded or inf)


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ([0.1, 0.11] * 3, "a gain of 0.105"),
        ([0.1, -0.09] * 3, "chance may give"),
        ([-0.1] * 6, "a loss of 0.1 ± "),
    ],
)
def test_the_reason_is_said(gains: list[float], words: str) -> None:
    found = beside(Damages(HARD_AND_EASY), less_by(*gains), 1)
    told = in_words("owl, lam 0.1", found, 6)
    assert "on 6 windows held apart from everything else owl, lam 0.1 did " in told
    assert words in told
    assert ("equal shares are taken" in told) is not found.is_beyond_chance


def test_a_grid_without_the_budget_has_a_mixture_for_equal_shares() -> None:
    budgets = tuple(
        LinearBudget(name=f"b{index}.l", block=f"b{index}", n_weights=8, value=value)
        for index, value in enumerate((3.0, 4.0, 4.0, 3.0))
    )
    plan = Plan(
        unit=Unit.BITS, target=3.5, grid=BitsGrid(bits=(3, 4)), low=3, high=4,
        allocator=AllocatorRecord(name="uniform"), budgets=budgets,
    )  # fmt: skip
    told = baseline_in_words(plan)
    assert told == (
        "no level is 3.5 bits per weight: what allocator uniform mixes, 2 linears at 3 bits, "
        "2 linears at 4 bits"
    )
