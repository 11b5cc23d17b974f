"""Budgets by what was asked for, blocks by their numbers."""

import pytest

from owl_compress.documents.plan import AllocatorRecord, LinearBudget, Plan
from owl_compress.documents.units import BitsGrid, Grid, KeptOfGrid, Unit
from owl_compress.pages.words import as_asked, block_numbers, target_in_words


def plan_of(unit: Unit, value: float, grid: Grid | None = None) -> Plan:
    budget = LinearBudget(name="layers.0.x", block="layers.0", n_weights=4, value=value)
    return Plan(
        unit=unit, target=value, grid=grid, low=0, high=16 if unit is Unit.BITS else 1, report="x",
        allocator=AllocatorRecord(name="owl"), budgets=(budget,),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (plan_of(Unit.DENSITY, 0.3), "sparsity 0.7"),
        (plan_of(Unit.DENSITY, 1 - 0.123456), "sparsity 0.123456"),
        (plan_of(Unit.DENSITY, 0.375, KeptOfGrid(kept_of=8)), "3:8 kept"),
        (plan_of(Unit.WIDTH, 0.8), "prune ratio 0.2"),
        (plan_of(Unit.BITS, 3, BitsGrid(bits=(2, 3, 4))), "3 bits per weight"),
    ],
)
def test_a_target_is_called_what_it_was_asked_for_as(plan: Plan, words: str) -> None:
    assert target_in_words(plan) == words


def test_bits_are_asked_for_by_what_is_kept() -> None:
    assert as_asked(Unit.BITS, 3.0) == 3.0
    assert as_asked(Unit.WIDTH, 0.75) == as_asked(Unit.DENSITY, 0.75) == 0.25


def test_blocks_are_their_numbers_where_nothing_is_lost_by_that() -> None:
    assert block_numbers(["model.layers.0", "model.layers.11"]) == (["0", "11"], "model.layers.")
    for names in (["enc.0", "dec.0"], ["model.first", "model.last"], ["alone"]):
        assert block_numbers(names) == (names, "")
