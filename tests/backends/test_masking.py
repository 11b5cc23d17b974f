"""Magnitude and Wanda against a literal transcription of their equations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from owl_compress.backends.magnitude import Magnitude
from owl_compress.backends.selection import Scope
from owl_compress.backends.wanda import Wanda
from owl_compress.compression.driver import compress_with_
from owl_compress.compression.tasks import BlockTask
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import Plan
from owl_compress.documents.units import KeptOfGrid
from owl_compress.errors import RequestError
from owl_compress.models.structure import find_structure
from owl_compress.walk.input_statistics import SecondMoments

TaskOf = Callable[..., BlockTask]


def lowest_zeroed(weight: Tensor, scores: Tensor, n_zero: int) -> Tensor:
    """`weight` [out, in] with the `n_zero` entries of lowest score in every row set to zero, as in Wanda."""
    result = weight.clone()
    order = torch.sort(scores, dim=-1, stable=True).indices[:, :n_zero]
    result.scatter_(1, order, 0.0)
    return result


def weight_of(task: BlockTask, index: int = 0) -> Tensor:
    return task.site.linears[index].weight


def test_wanda_prunes_each_row_by_weight_times_norm(task_of: TaskOf) -> None:
    weight, x = torch.randn(6, 20), torch.randn(40, 20) * torch.rand(20)
    task = task_of([weight], x, 0.35, SecondMoments)
    (outcome,) = Wanda().compress_block_(task)
    scores = weight.double().abs() * x.double().square().sum(0).sqrt()
    assert torch.equal(weight_of(task), lowest_zeroed(weight, scores, 13))  # 20 * 0.65
    assert outcome.achieved == 0.35


def test_wanda_within_the_linear(task_of: TaskOf) -> None:
    weight, x = torch.randn(6, 20), torch.randn(40, 20) * torch.rand(20)
    task = task_of([weight], x, 0.35, SecondMoments)
    Wanda(Scope.LINEAR).compress_block_(task)
    scores = (weight.double().abs() * x.double().square().sum(0).sqrt()).reshape(1, -1)
    assert torch.equal(weight_of(task).reshape(1, -1), lowest_zeroed(weight.reshape(1, -1), scores, 78))


def test_magnitude_prunes_the_linear_by_weight_alone(task_of: TaskOf) -> None:
    weight = torch.randn(6, 20)
    task = task_of([weight], None, 0.3, None)
    Magnitude().compress_block_(task)
    flat = weight.reshape(1, -1)
    assert torch.equal(weight_of(task).reshape(1, -1), lowest_zeroed(flat, flat.abs(), 84))


def test_magnitude_by_row(task_of: TaskOf) -> None:
    weight = torch.randn(6, 20)
    task = task_of([weight], None, 0.3, None)
    Magnitude(Scope.ROW).compress_block_(task)
    assert torch.equal(weight_of(task), lowest_zeroed(weight, weight.abs(), 14))


def test_two_of_four(task_of: TaskOf) -> None:
    weight, x = torch.randn(6, 20), torch.randn(40, 20) * torch.rand(20)
    task = task_of([weight], x, 0.5, SecondMoments, KeptOfGrid(kept_of=4))
    Wanda().compress_block_(task)
    scores = (weight.double().abs() * x.double().square().sum(0).sqrt()).reshape(-1, 4)
    assert torch.equal(weight_of(task).reshape(-1, 4), lowest_zeroed(weight.reshape(-1, 4), scores, 2))


def test_the_error_of_wanda_is_exact_for_uncorrelated_inputs(task_of: TaskOf) -> None:
    weight = torch.randn(5, 12)
    x = torch.linalg.qr(torch.randn(30, 12)).Q * (1 + torch.rand(12))  # columns at right angles
    task = task_of([weight], x, 0.5, SecondMoments)
    (outcome,) = Wanda().compress_block_(task)
    lost, whole = x @ (weight - weight_of(task)).t(), x @ weight.t()
    expected = float(lost.square().sum() / whole.square().sum())
    assert 0 < expected < 1
    assert outcome.relative_error == pytest.approx(expected, rel=1e-5)


def test_the_error_of_magnitude_is_the_share_of_squares_lost(task_of: TaskOf) -> None:
    weight = torch.randn(5, 12)
    task = task_of([weight], None, 0.5, None)
    (outcome,) = Magnitude().compress_block_(task)
    expected = float((weight - weight_of(task)).square().sum() / weight.square().sum())
    assert outcome.relative_error == pytest.approx(expected, rel=1e-6)


def test_a_weight_of_zeros_has_no_error(task_of: TaskOf) -> None:
    task = task_of([torch.zeros(4, 8)], None, 0.5, None)
    (outcome,) = Magnitude().compress_block_(task)
    assert (outcome.relative_error, outcome.achieved) == (0.0, 0.0)


def test_linears_of_one_group_are_compared_each_for_itself(task_of: TaskOf) -> None:
    weights, x = [torch.randn(4, 8), 100 * torch.randn(6, 8)], torch.randn(20, 8)
    task = task_of(weights, x, 0.5, SecondMoments)
    outcomes = Wanda(Scope.LINEAR).compress_block_(task)
    assert [outcome.name for outcome in outcomes] == ["block.0", "block.1"]
    assert [outcome.achieved for outcome in outcomes] == [0.5, 0.5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named_and_left(task_of: TaskOf, bad: float) -> None:
    weight = torch.randn(4, 8)
    weight[1, 2] = bad
    task = task_of([weight], None, 0.5, None)
    with pytest.raises(RequestError, match=r"block\.0 holds NaN or Inf"):
        Magnitude().compress_block_(task)
    assert int(torch.count_nonzero(weight_of(task))) == 32


def test_each_block_is_pruned_on_the_outputs_of_the_pruned_blocks_before_it(
    family_model: Any,
    make_model: Callable[[str], Any],
    make_windows: Callable[..., TokenWindows],
    plan_for: Callable[..., Plan],
    wanda_scores: Callable[..., dict[str, Tensor]],
) -> None:
    windows = make_windows(3)
    model = family_model.double()  # no rounding that could turn the order of two scores
    expected = wanda_by_whole_forwards(model, windows, 0.5, wanda_scores)
    compress_with_(model, plan_for(model, 0.5), Wanda(), windows)
    for linear in find_structure(model).linears:
        assert torch.equal(linear.weight, expected[linear.name]), linear.name


def wanda_by_whole_forwards(
    model: nn.Module, windows: TokenWindows, density: float, score: Callable[..., dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Wanda with a whole forward pass of the model per block; the model is put back afterwards."""
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned: dict[str, Tensor] = {}
    for block in find_structure(model).blocks:
        scores = score(model, windows, block.linears)
        for linear in block.linears:
            n_zero = round((1 - density) * linear.shape[1])
            pruned[linear.name] = lowest_zeroed(linear.weight, scores[linear.name], n_zero)
            linear.weight.copy_(pruned[linear.name])
    model.load_state_dict(dense)
    return pruned
