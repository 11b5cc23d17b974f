"""Grids, and the whole numbers that a budget stands for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from owl_compress.documents.units import (
    BIT_WIDTHS,
    BIT_WIDTHS_SHOWN,
    BitsGrid,
    KeptOfGrid,
    is_bit_width,
    kept_weights,
)


def test_grids_list_their_values_rising() -> None:
    assert KeptOfGrid(kept_of=4).values() == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert BitsGrid(bits=(4, 2, 3, 2)).values() == (2.0, 3.0, 4.0)


@pytest.mark.parametrize("kept_of", range(1, 130))
def test_every_density_on_the_grid_stands_for_its_own_number_kept(kept_of: int) -> None:
    grid = KeptOfGrid(kept_of=kept_of)
    assert [grid.kept(density) for density in grid.values()] == list(range(kept_of + 1))


@pytest.mark.parametrize("bits", [(), (0,), (3, -1)])
def test_a_grid_of_no_widths_or_of_none_at_all_is_refused(bits: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="bits"):
        BitsGrid(bits=bits)


@given(st.floats(0, 1), st.integers(1, 10**9))
def test_weights_kept_are_the_most_that_do_not_exceed_their_share(density: float, n_weights: int) -> None:
    kept = kept_weights(density, n_weights)
    assert 0 <= kept <= density * n_weights < kept + 1


@pytest.mark.parametrize("bits", [2, 3, 8, 4.0])
def test_whole_widths_in_range_are_bit_widths(bits: float) -> None:
    assert is_bit_width(bits)


@pytest.mark.parametrize("bits", [1, 9, 0, -2, 2.5, float("inf"), float("nan")])
def test_other_numbers_are_no_bit_widths(bits: float) -> None:
    assert not is_bit_width(bits)


def test_the_widths_are_told_as_they_are() -> None:
    assert list(BIT_WIDTHS) == [2, 3, 4, 5, 6, 7, 8]
    assert BIT_WIDTHS_SHOWN == "a whole number from 2 to 8"


def test_no_grid_is_larger_than_what_can_exist() -> None:
    for kept_of in (2**16 + 1, 10**9, 10**19):
        with pytest.raises(ValidationError, match="kept_of"):
            KeptOfGrid(kept_of=kept_of)
    with pytest.raises(ValidationError, match="bits"):
        BitsGrid(bits=(3, 10**9))
