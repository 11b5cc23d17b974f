"""Importance of units against loops over single weights, and choices against trying every one."""

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from owl_compress.backends.unit_importance import (
    Importance,
    LinearView,
    TaylorVariant,
    UnitScore,
    highest,
    highest_heads,
)
from owl_compress.compression.tasks import LinearTask
from owl_compress.errors import RequestError
from owl_compress.models.anatomy import Slot
from owl_compress.models.structure import LinearSite
from owl_compress.walk.gradients import Salience
from owl_compress.walk.input_statistics import SecondMoments

ROWS, COLUMNS, MIDDLE = 3, 4, 6
# Three units of two channels each: rows of `up`, columns of `down`, in an order of their own.
UNITS = torch.tensor([[5, 0], [1, 3], [2, 4]])
SLOTS = (Slot("up", "out", UNITS), Slot("down", "in", UNITS))


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WEIGHTS = {"up": drawn(MIDDLE, COLUMNS, seed=0), "down": drawn(ROWS, MIDDLE, seed=1)}
GRADIENTS = {"up": drawn(MIDDLE, COLUMNS, seed=2), "down": drawn(ROWS, MIDDLE, seed=3)}
INPUTS = {"up": drawn(9, COLUMNS, seed=4), "down": drawn(9, MIDDLE, seed=5)}


def views(weights: dict[str, Tensor] = WEIGHTS) -> dict[str, LinearView]:
    found = {}
    for name, weight in weights.items():
        module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        module.weight = nn.Parameter(weight.clone())
        products = (weight * GRADIENTS[name]).double()
        salience = Salience(products.abs().sum(1), products.abs().sum(0), products.sum(1), products.sum(0))
        statistic = SecondMoments.empty(weight.shape[1], weight.device)
        statistic.add(INPUTS[name])
        found[name] = LinearView(LinearTask(LinearSite(name, "other", module), 0.5, salience), statistic)
    return found


def unit_entries(unit: int) -> list[tuple[str, int, int]]:
    """Name, row and column of every weight of a unit."""
    return [
        *(("up", int(row), column) for row in UNITS[unit] for column in range(COLUMNS)),
        *(("down", row, int(column)) for column in UNITS[unit] for row in range(ROWS)),
    ]


def by_weight(of_one: Callable[[str, int, int], float]) -> list[float]:
    return [sum(of_one(*entry) for entry in unit_entries(unit)) for unit in range(3)]


def test_wanda_sums_weight_times_input_norm() -> None:
    expected = by_weight(lambda n, i, j: float(WEIGHTS[n][i, j].abs() * INPUTS[n][:, j].norm()))
    assert UnitScore(Importance.WANDA).of(SLOTS, views(), "b").tolist() == pytest.approx(expected, rel=1e-5)


def test_magnitude_is_the_norm_of_all_weights_of_the_unit() -> None:
    expected = [total**0.5 for total in by_weight(lambda n, i, j: float(WEIGHTS[n][i, j] ** 2))]
    found = UnitScore(Importance.MAGNITUDE).of(SLOTS, views(), "b")
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_taylor_takes_each_weight_or_each_row_and_column() -> None:
    expected = by_weight(lambda n, i, j: float((WEIGHTS[n] * GRADIENTS[n])[i, j].abs()))
    found = UnitScore(Importance.TAYLOR).of(SLOTS, views(), "b")
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    rows = (WEIGHTS["up"] * GRADIENTS["up"]).sum(dim=1).abs()
    columns = (WEIGHTS["down"] * GRADIENTS["down"]).sum(dim=0).abs()
    expected = [float(sum(rows[i] + columns[i] for i in unit)) for unit in UNITS]
    found = UnitScore(Importance.TAYLOR, TaylorVariant.VECTOR).of(SLOTS, views(), "b")
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_random_depends_on_seed_and_place_alone() -> None:
    def draw(seed: int, where: str) -> list[float]:
        return UnitScore(Importance.RANDOM, seed=seed).of(SLOTS, {}, where).tolist()

    assert draw(0, "block.0") == draw(0, "block.0")
    assert len({tuple(draw(seed, where)) for seed in (0, 1) for where in ("block.0", "block.1")}) == 4


@pytest.mark.parametrize("importance", [Importance.WANDA, Importance.MAGNITUDE])
def test_a_weight_that_is_not_finite_is_named(importance: Importance) -> None:
    broken = WEIGHTS["down"].clone()
    broken[1, 2] = torch.inf
    with pytest.raises(RequestError, match="down holds NaN or Inf, or overflows"):
        UnitScore(importance).of(SLOTS, views(WEIGHTS | {"down": broken}), "b")


def test_auto_scores_nothing_before_it_is_settled() -> None:
    with pytest.raises(TypeError, match="importance auto has to be settled"):
        UnitScore(Importance.AUTO).of(SLOTS, views(WEIGHTS), "b")


def test_of_equal_units_the_first_stay() -> None:
    assert highest(torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0]), 3).tolist() == [0, 1, 3]
    assert highest(torch.ones(4), 2).tolist() == [0, 1]
    choice = highest_heads(torch.ones(6), torch.ones(3), 2, 1)
    assert (choice.heads.tolist(), choice.kv_heads.tolist()) == ([0, 2], [0, 1])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("groups", "per_group"), [(1, 4), (3, 3), (4, 1), (2, 5)])
def test_no_other_choice_of_heads_is_more_important(groups: int, per_group: int, seed: int) -> None:
    queries = drawn(groups * per_group, seed=seed).abs()
    keys_values = drawn(groups, seed=seed + 50).abs()
    for n_groups in range(1, groups + 1):
        for n_each in range(1, per_group + 1):
            best = max(
                float(keys_values[list(kept)].sum())
                + sum(
                    max(
                        float(queries[[group * per_group + head for head in heads]].sum())
                        for heads in combinations(range(per_group), n_each)
                    )
                    for group in kept
                )
                for kept in combinations(range(groups), n_groups)
            )
            choice = highest_heads(queries, keys_values, n_groups, n_each)
            together = float(queries[choice.heads].sum() + keys_values[choice.kv_heads].sum())
            assert together == pytest.approx(best, rel=1e-5)
            assert choice.importance == pytest.approx(best, rel=1e-5)
            assert choice.heads.tolist() == sorted(choice.heads.tolist())
            per_kept = [int(head) // per_group for head in choice.heads]
            assert per_kept == [int(group) for group in choice.kv_heads for _ in range(n_each)]


def test_without_heads_nothing_is_left() -> None:
    choice = highest_heads(torch.rand(6), torch.rand(3), 0, 0)
    assert (len(choice.heads), len(choice.kv_heads), choice.importance) == (0, 0, 0.0)
