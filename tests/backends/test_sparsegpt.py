"""SparseGPT against a slow and literal version of itself in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from owl_compress.backends import solver, sparsegpt
from owl_compress.backends.selection import Scope
from owl_compress.backends.sparsegpt import SparseGPT
from owl_compress.backends.wanda import Wanda
from owl_compress.compression.tasks import BlockTask
from owl_compress.documents.units import KeptOfGrid
from owl_compress.errors import RequestError
from owl_compress.walk.input_statistics import Gram, SecondMoments

TaskOf = Callable[..., BlockTask]
WIDTH = 16


@pytest.fixture(autouse=True)
def _narrow_solver_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several solver blocks in a small matrix."""
    monkeypatch.setattr(solver, "SOLVER_BLOCK", WIDTH)
    monkeypatch.setattr(sparsegpt, "SOLVER_BLOCK", WIDTH)


def problem(rows: int = 6, columns: int = 40, tokens: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(columns) + 0.1 * torch.randn(columns, columns, generator=generator)
    x = torch.randn(tokens, columns, generator=generator) @ mix
    return torch.randn(rows, columns, generator=generator), x


Choose = Callable[[int, Tensor], Tensor]
"""From the first column and the saliencies [out, columns] of the columns decided together to a keep mask."""


def literal(weight: Tensor, x: Tensor, width: int, choose: Choose, damping: float = 0.01) -> Tensor:
    """SparseGPT column by column in float64, with an explicit inverse for every column."""
    hessian = x.double().t() @ x.double()
    hessian += damping * hessian.diagonal().mean() * torch.eye(len(hessian)).double()
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(len(hessian))]
    diagonal = torch.stack([inverse[0, 0] for inverse in inverses])  # U_jj^2
    weight = weight.double().clone()
    keep = torch.ones_like(weight, dtype=torch.bool)
    for j in range(weight.shape[1]):
        if j % width == 0:
            part = slice(j, j + width)
            keep[:, part] = choose(j, weight[:, part].square() / diagonal[part])
        step = torch.where(keep[:, j], 0.0, weight[:, j]) / diagonal[j]
        weight[:, j:] -= step[:, None] * inverses[j][0][None, :]
        weight[:, j] *= keep[:, j]
    return weight


def highest(scores: Tensor, n: int) -> Tensor:
    """Mask of the `n` highest of `scores`, by sorting."""
    mask = np.zeros(scores.numel(), dtype=bool)
    mask[np.argsort(-scores.numpy().ravel(), kind="stable")[:n]] = True
    return torch.from_numpy(mask.reshape(scores.shape))


def compare(ours: Tensor, expected: Tensor) -> None:
    assert torch.equal(ours != 0, expected != 0)  # the same weights are gone
    torch.testing.assert_close(ours.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("density", [0.3, 0.5, 0.77])
def test_the_linear_is_compared_a_column_block_at_a_time(task_of: TaskOf, density: float) -> None:
    weight, x = problem()
    n_kept = int(density * weight.numel())

    def choose(first: int, saliency: Tensor) -> Tensor:
        last = first + saliency.shape[1]
        return highest(saliency, n_kept * last // 40 - n_kept * first // 40)

    task = task_of([weight], x, density, Gram)
    (outcome,) = SparseGPT().compress_block_(task)
    ours = task.site.linears[0].weight
    compare(ours, literal(weight, x, WIDTH, choose))
    assert int(torch.count_nonzero(ours)) == n_kept
    assert outcome.achieved == n_kept / weight.numel()


def test_row_by_row(task_of: TaskOf) -> None:
    weight, x = problem()  # column blocks of 16, 16 and 8
    task = task_of([weight], x, 0.5, Gram)
    SparseGPT(Scope.ROW).compress_block_(task)

    def choose(_first: int, saliency: Tensor) -> Tensor:
        return torch.stack([highest(row, len(row) // 2) for row in saliency])

    compare(task.site.linears[0].weight, literal(weight, x, WIDTH, choose))


@pytest.mark.parametrize(("kept", "group"), [(2, 4), (3, 8), (1, 5), (7, 20)])
def test_n_of_m(task_of: TaskOf, kept: int, group: int) -> None:
    weight, x = problem()
    task = task_of([weight], x, kept / group, Gram, KeptOfGrid(kept_of=group))
    SparseGPT().compress_block_(task)

    def choose(_first: int, saliency: Tensor) -> Tensor:
        return torch.stack([highest(row, kept) for row in saliency])

    compare(task.site.linears[0].weight, literal(weight, x, group, choose))


@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_the_error_is_that_under_the_damped_hessian(task_of: TaskOf, damping: float) -> None:
    weight, x = problem()
    task = task_of([weight], x, 0.5, Gram)
    (outcome,) = SparseGPT(damping=damping).compress_block_(task)
    change = (weight - task.site.linears[0].weight).double()
    hessian = x.double().t() @ x.double()
    energy = float(((weight.double() @ hessian) * weight.double()).sum())
    hessian += damping * hessian.diagonal().mean() * torch.eye(40).double()
    error = float(((change @ hessian) * change).sum())
    assert outcome.relative_error == pytest.approx(error / energy, rel=1e-3)


def test_without_damping_the_error_is_that_of_the_outputs(task_of: TaskOf) -> None:
    weight, x = problem()
    task = task_of([weight], x, 0.5, Gram)
    (outcome,) = SparseGPT(damping=0.0).compress_block_(task)
    lost = x @ (weight - task.site.linears[0].weight).t()
    expected = float(lost.square().sum() / (x @ weight.t()).square().sum())
    assert outcome.relative_error == pytest.approx(expected, rel=1e-3)
    assert outcome.fallbacks == ()


def test_it_loses_less_than_a_mask_alone(task_of: TaskOf) -> None:
    weight, x = problem()
    errors = []
    for backend, statistic in ((SparseGPT(), Gram), (Wanda(Scope.LINEAR), SecondMoments)):
        task = task_of([weight], x, 0.5, statistic)
        backend.compress_block_(task)
        errors.append(float((x @ (weight - task.site.linears[0].weight).t()).square().sum()))
    assert errors[0] < 0.8 * errors[1]


def test_linears_of_a_group_are_solved_as_if_alone(task_of: TaskOf) -> None:
    _, x = problem()
    weights = [problem(rows=rows, seed=rows)[0] for rows in (6, 3, 9)]
    together = task_of(weights, x, 0.45, Gram)
    outcomes = SparseGPT().compress_block_(together)
    for index, weight in enumerate(weights):
        alone = task_of([weight], x, 0.45, Gram)
        (outcome,) = SparseGPT().compress_block_(alone)
        # the same products in wider matrices: another order of summation
        torch.testing.assert_close(
            together.site.linears[index].weight, alone.site.linears[0].weight, rtol=1e-4, atol=1e-5
        )
        assert outcomes[index].relative_error == pytest.approx(outcome.relative_error, rel=1e-4)
        assert outcomes[index].achieved == outcome.achieved


def test_dead_inputs_go_first(task_of: TaskOf) -> None:
    weight, x = problem()
    x *= 0.01  # so that the one on the diagonal of dead inputs would look important
    x[:, [2, 17, 18]] = 0.0
    task = task_of([weight], x, 0.5, Gram)
    (outcome,) = SparseGPT(damping=0.0).compress_block_(task)
    ours = task.site.linears[0].weight
    assert not ours[:, [2, 17, 18]].any()
    assert int(torch.count_nonzero(ours)) == 120
    lost = x @ (weight - ours).t()
    expected = float(lost.square().sum() / (x @ weight.t()).square().sum())
    assert outcome.relative_error == pytest.approx(expected, rel=1e-3)


def test_fewer_tokens_than_inputs(task_of: TaskOf) -> None:
    weight, x = problem(tokens=10)
    task = task_of([weight], x, 0.5, Gram)
    (outcome,) = SparseGPT().compress_block_(task)
    assert torch.isfinite(task.site.linears[0].weight).all()
    assert outcome.achieved == 0.5
    assert 0 < outcome.relative_error < 1


def test_a_raised_damping_is_reported_for_every_linear_of_the_group(task_of: TaskOf) -> None:
    weight, x = problem(tokens=10)
    task = task_of([weight, weight], x, 0.5, Gram)
    outcomes = SparseGPT(damping=0.0).compress_block_(task)
    assert [outcome.fallbacks[0].where for outcome in outcomes] == ["block.0", "block.1"]
    assert all(outcome.fallbacks[0].count >= 1 for outcome in outcomes)


def test_keeping_everything_changes_nothing(task_of: TaskOf) -> None:
    weight, x = problem()
    for dtype in (torch.float32, torch.bfloat16):
        task = task_of([weight.to(dtype)], x, 1.0, Gram)
        (outcome,) = SparseGPT().compress_block_(task)
        assert torch.equal(task.site.linears[0].weight, weight.to(dtype))
        assert (outcome.achieved, outcome.relative_error) == (1.0, 0.0)


def test_no_zero_has_a_sign(task_of: TaskOf) -> None:
    weight, x = problem()
    task = task_of([weight], x, 0.3, Gram)
    SparseGPT().compress_block_(task)
    ours = task.site.linears[0].weight
    assert not torch.signbit(ours[ours == 0]).any()


def test_weights_that_are_no_numbers_are_named_and_left(task_of: TaskOf) -> None:
    weight, x = problem()
    weight[2, 5] = float("nan")
    task = task_of([weight], x, 0.5, Gram)
    with pytest.raises(RequestError, match=r"block\.0 holds NaN or Inf"):
        SparseGPT().compress_block_(task)
    assert int(torch.count_nonzero(task.site.linears[0].weight)) == weight.numel()


def test_a_negative_damping_is_refused_at_birth() -> None:
    with pytest.raises(RequestError, match=r"damping -0\.01 is not a share"):
        SparseGPT(damping=-0.01)
