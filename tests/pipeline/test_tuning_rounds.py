"""Rounds: many plans on little text, few on much, at about the same cost."""

import pytest

from owl_compress.pipeline.tuning_rounds import Means, judging_windows, rounds_of


def test_two_of_three_plans_go_until_four_are_left() -> None:
    rounds = rounds_of(34, Means(statistics_windows=18, judging_windows=4))
    assert [one.plans for one in rounds] == [34, 12, 4]
    assert [one.statistics_windows for one in rounds] == [2, 6, 18]
    assert [one.judging_windows for one in rounds] == [4, 8, 16]
    assert judging_windows(rounds) == 28


@pytest.mark.parametrize("count", [2, 3, 4])
def test_few_plans_meet_in_the_last_round_at_once(count: int) -> None:
    (only,) = rounds_of(count, Means(16, 4))
    assert (only.plans, only.statistics_windows, only.judging_windows) == (count, 16, 16)


def test_no_round_is_dearer_than_twice_another() -> None:
    rounds = rounds_of(36, Means(16, 4))
    costs = [one.plans * one.statistics_windows for one in rounds]
    assert max(costs) < 2 * min(costs)


@pytest.mark.parametrize("n_plans", range(2, 60))
def test_rounds_shrink_and_text_grows(n_plans: int) -> None:
    rounds = rounds_of(n_plans, Means(5, 1))
    counts = [one.plans for one in rounds]
    assert counts[0] == n_plans
    assert 2 <= counts[-1] <= 4
    assert counts == sorted(set(counts), reverse=True)
    for kept in ("statistics_windows", "judging_windows"):
        windows = [getattr(one, kept) for one in rounds]
        assert windows == sorted(windows)
        assert min(windows) >= 1
    assert rounds[-1].statistics_windows == 5
    assert rounds[-1].judging_windows == 4
