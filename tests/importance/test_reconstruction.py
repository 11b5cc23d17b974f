"""The least error against masks chosen, and errors counted, straight from the inputs."""

from itertools import combinations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from owl_compress.importance import reconstruction
from owl_compress.importance.reconstruction import least_error

Array = NDArray[np.float64]


def correlated(n_tokens: int, n_inputs: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(n_inputs, n_inputs, generator=generator, dtype=torch.float64)
    return torch.randn(n_tokens, n_inputs, generator=generator, dtype=torch.float64) @ mixing + 0.5


def weight_of(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def change(row: Array, removed: list[int], inputs: Array) -> float:
    """Squared change of one output over all tokens when these weights are removed."""
    return float(np.sum((inputs[:, removed] @ row[removed]) ** 2))


def greedy(row: Array, inputs: Array, group: int) -> float:
    removed: list[int] = []
    for start in range(0, len(row), group):
        members = range(start, min(start + group, len(row)))
        for _ in range(len(members) // 2):
            left = [i for i in members if i not in removed]
            removed.append(min(left, key=lambda i: change(row, [*removed, i], inputs)))
    return change(row, removed, inputs)


@pytest.mark.parametrize("group", [4, 6, 13, 128])
def test_weights_go_one_by_one_each_the_least_given_those_before(group: int) -> None:
    weight, inputs = weight_of(5, 13), correlated(40, 13)
    expected = sum(greedy(row, inputs.numpy(), group) for row in weight.numpy())
    assert least_error(weight, (inputs.t() @ inputs).float(), group=group) == pytest.approx(
        expected, rel=1e-4
    )


def test_no_mask_of_half_the_weights_does_much_better() -> None:
    weight, inputs = weight_of(6, 8), correlated(30, 8)
    found = least_error(weight, (inputs.t() @ inputs).float())
    halves = [list(half) for half in combinations(range(8), 4)]
    per_row = [sorted(change(row, half, inputs.numpy()) for half in halves) for row in weight.numpy()]
    assert (
        sum(row[0] for row in per_row) * (1 - 1e-4) <= found < sum(row[len(halves) // 4] for row in per_row)
    )


def test_with_inputs_that_are_uncorrelated_the_smaller_half_of_the_scores_goes() -> None:
    weight, second_moments = weight_of(4, 256), torch.rand(256, dtype=torch.float64) + 0.1
    squares = (weight.square() * second_moments).view(4, 2, 128).sort(dim=-1).values
    found = least_error(weight, second_moments.diag().float())
    assert found == pytest.approx(float(squares[..., :64].sum()), rel=1e-5)


def test_rows_are_taken_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = weight_of(9, 12), correlated(40, 12)
    gram = (inputs.t() @ inputs).float()
    whole = least_error(weight, gram)
    monkeypatch.setattr(reconstruction, "_CHUNK", 24)
    assert least_error(weight, gram) == pytest.approx(whole, rel=1e-6)
