"""The course of a training is a function of the step alone."""

from math import cos, pi

import pytest
from hypothesis import given
from hypothesis import strategies as st

from owl_compress.recovery.schedule import Order, learning_rate_share


def test_the_learning_rate_rises_in_equal_steps_and_falls_as_half_a_cosine() -> None:
    shares = [learning_rate_share(step, 10, 0.3) for step in range(10)]
    assert shares[:3] == [1 / 4, 2 / 4, 3 / 4]
    assert shares[3:] == pytest.approx([0.5 * (1 + cos(pi * step / 7)) for step in range(7)])


@given(st.integers(1, 500), st.floats(0, 0.99))
def test_the_learning_rate_is_never_zero_nor_above_the_highest(steps: int, warm_up: float) -> None:
    shares = [learning_rate_share(step, steps, warm_up) for step in range(steps)]
    assert all(0 < share <= 1 for share in shares)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(-(2**63), 2**63 - 1))
def test_every_sequence_is_seen_once_before_any_is_seen_again(n: int, per_step: int, seed: int) -> None:
    order = Order(n, per_step, seed)
    seen = [index for step in range(n) for index in order.indices(step)]
    for epoch in range(per_step):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_another_seed_and_another_epoch_are_other_orders() -> None:
    first = Order(50, 50, 0)
    assert first.indices(0) == Order(50, 50, 0).indices(0)
    assert first.indices(0) != first.indices(1)
    assert first.indices(0) != Order(50, 50, 1).indices(0)
