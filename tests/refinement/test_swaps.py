"""The choice of moves, against every choice there is."""

from dataclasses import replace
from itertools import combinations
from math import fsum

import numpy as np
import pytest

from owl_compress.documents.plan import AllocatorRecord, LinearBudget, Plan
from owl_compress.documents.units import BitsGrid, Unit
from owl_compress.errors import RequestError
from owl_compress.refinement.steps import Steps
from owl_compress.refinement.swaps import Ledger, Move, best_moves, mean_level, move_between

MOST = 4


def case(seed: int) -> tuple[Ledger, dict[str, float], list[Move]]:
    """Parts of one linear each, of unequal sizes, at 3 bits; a budget that leaves a little room."""
    draw = np.random.default_rng(seed)
    sizes = {f"part{index}": int(draw.choice([12, 18, 30])) for index in range(5)}
    values = dict.fromkeys(sizes, 3.0)
    limit = 3 * sum(sizes.values()) + int(draw.integers(0, 12))
    moves = [
        Move(name, 3.0, 3.0 + way, {name: 3.0 + way}, way * size, float(draw.normal() + 0.5 * way))
        for name, size in sizes.items()
        for way in (1, -1)
    ]
    return Ledger(sizes, 1, limit, is_divisible=False), values, moves


@pytest.mark.parametrize("seed", range(12))
def test_small_gains_are_told_apart(seed: int) -> None:
    ledger, values, moves = case(seed)
    small = [replace(move, gain=1e-9 * move.gain) for move in moves]
    names = [[move.part for move in best_moves(some, MOST, ledger, values)] for some in (moves, small)]
    assert names[0] == names[1]


def test_a_budget_short_by_a_few_of_many_weights_is_kept() -> None:
    sizes = dict.fromkeys(("one", "two", "three"), 200_000_000)
    values = dict.fromkeys(sizes, 3.0)
    moves = [Move(name, 3.0, 4.0, {name: 4.0}, float(size), 1.0) for name, size in sizes.items()]
    limit = 3 * sum(sizes.values()) + 199_999_980
    assert best_moves(moves, MOST, Ledger(sizes, 1, limit, is_divisible=False), values) == ()


@pytest.mark.parametrize("seed", range(12))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    ledger, values, moves = case(seed)
    smallest = min(abs(move.spend) for move in moves)
    left = ledger.limit - ledger.spend(values)
    best = 0.0
    for size in range(1, MOST + 1):
        for chosen in combinations(moves, size):
            if len({move.part for move in chosen}) < size:
                continue
            if not min(0, left - smallest + 1) <= sum(move.spend for move in chosen) <= left:
                continue
            best = max(best, fsum(move.gain for move in chosen))
    found = best_moves(moves, MOST, ledger, values)
    assert len(found) <= MOST
    assert fsum(move.gain for move in found) == pytest.approx(best)
    after = {**values, **{name: value for move in found for name, value in move.budgets.items()}}
    assert ledger.limit - max(smallest, left + 1) < ledger.spend(after) <= ledger.limit


@pytest.mark.parametrize("seed", range(6))
def test_off_a_grid_the_mean_stays(seed: int) -> None:
    draw = np.random.default_rng(seed)
    sizes = {f"part{index}": int(draw.integers(50, 5000)) for index in range(6)}
    values = {name: float(draw.uniform(0.2, 0.8)) for name in sizes}
    ledger = Ledger(sizes, 1, 0, is_divisible=True)
    moves = [
        Move(
            name,
            value,
            value + step,
            {name: value + step},
            step * sizes[name],
            float(draw.normal() + 9 * step),
        )
        for name, value in values.items()
        for step in (0.05, -0.05)
    ]
    found = best_moves(moves, MOST, ledger, values)
    assert 2 <= len(found) <= MOST
    after = {**values, **{name: value for move in found for name, value in move.budgets.items()}}
    assert mean_level(sizes, after) == pytest.approx(mean_level(sizes, values), rel=1e-13)
    # None goes further than it was measured.
    assert all(abs(after[name] - values[name]) <= 0.05 + 1e-12 for name in sizes)
    # No balanced pair alone gains more.
    pairs = [
        up.gain * min(1, -down.spend / up.spend) + down.gain * min(1, -up.spend / down.spend)
        for up in moves
        for down in moves
        if up.spend > 0 > down.spend and up.part != down.part
    ]
    assert fsum(move.gain for move in found) >= max(pairs) - 1e-9


def test_a_part_moves_one_way_whatever_linears_that_changes() -> None:
    """Up is a change of two of its linears and down of the two others, as where heads share keys."""
    names = ("q", "k", "v", "o", "gate")
    ledger = Ledger(dict.fromkeys(names, 8), 8, 8 * 20, is_divisible=False)
    values = dict.fromkeys(names, 0.5)
    up = Move("attention", 0.5, 0.75, {"q": 1.0, "o": 1.0}, 64, 1.0)
    down = Move("attention", 0.5, 0.25, {"k": 0.0, "v": 0.0}, -64, 0.5)
    other = Move("mlp", 0.5, 0.0, {"gate": 0.0}, -32, -0.1)
    for most in (2, 4):
        found = best_moves([up, down, other], most, ledger, values)
        assert len({move.part for move in found}) == len(found)


def test_nothing_moves_where_nothing_gains() -> None:
    ledger, values, moves = case(0)
    losing = [Move(m.part, m.before, m.after, m.budgets, m.spend, -1.0) for m in moves]
    assert best_moves(losing, MOST, ledger, values) == ()
    assert best_moves([], MOST, ledger, values) == ()


def test_a_move_is_what_changed() -> None:
    ledger = Ledger({"a": 10, "b": 30}, 1, 0, is_divisible=False)
    before = {"a": 2.0, "b": 3.0}
    move = move_between("part", ["a", "b"], before, {"b": 4.0}, ledger)
    assert move == Move("part", 2.75, 3.5, {"b": 4.0}, 30, 0.0)
    assert move_between("part", ["a", "b"], before, {"a": 2.0}, ledger) is None


def plan(unit: Unit, values: list[float], low: float, high: float, **more: object) -> Plan:
    budgets = tuple(
        LinearBudget(name=f"l{index}", block="b", n_weights=8, value=value)
        for index, value in enumerate(values)
    )
    record = AllocatorRecord(name="by hand")
    return Plan.model_validate(
        {
            "unit": unit,
            "target": high,
            "low": low,
            "high": high,
            "allocator": record,
            "budgets": budgets,
            **more,
        }
    )


def test_levels_next_to_each_other() -> None:
    steps = Steps.of(plan(Unit.BITS, [2, 3], 2, 4, grid=BitsGrid(bits=(2, 3, 4, 8))))
    assert [steps.next(value, 1) for value in (2, 3, 4)] == [3, 4, None]
    assert [steps.next(value, -1) for value in (2, 3, 4)] == [None, 2, 3]
    assert steps.moved({"a": 2.0, "b": 4.0}, 1) == {"a": 3.0}
    off = Steps.of(plan(Unit.DENSITY, [0.5], 0.0, 0.58), 0.05)
    assert off.next(0.5, 1) == pytest.approx(0.55)
    assert off.next(0.55, 1) == 0.58
    assert off.next(0.04, -1) is None  # a part is not emptied
    assert [round(one["a"], 9) for one in off.ever_further({"a": 0.45}, 1)] == [0.5, 0.55, 0.58]


def test_a_single_level_is_refused() -> None:
    with pytest.raises(RequestError, match="single level"):
        Steps.of(plan(Unit.BITS, [3], 3, 3, grid=BitsGrid(bits=(3,))))
    with pytest.raises(RequestError, match="single level"):
        Steps.of(plan(Unit.DENSITY, [0.5], 0.5, 0.5))
