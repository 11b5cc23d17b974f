"""The column sweep against Optimal Brain Surgeon written out with explicit inverses, in float64."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from owl_compress.backends import solver
from owl_compress.backends.solver import (
    damping_fallbacks,
    factorise,
    gram_of,
    inverse_of_lower,
    relative_error,
    sweep_,
)
from owl_compress.errors import RequestError
from owl_compress.walk.input_statistics import Gram, SecondMoments


@dataclass
class Rule:
    """Every column by the same function, without looking ahead."""

    change: Callable[[int, Tensor], Tensor]
    columns: int = 1

    def decide(self, first: int, weight_t: Tensor, diagonal: Tensor) -> None:
        """Nothing to decide."""

    def apply(self, column: int, values: Tensor) -> Tensor:
        return self.change(column, values)


def surgeon(weight: Tensor, hessian: Tensor, change: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Change column after column; the columns that are left move to where the error is smallest.

    Fixing w_j to a value shifts the others by -(w_j - value) / [F^-1]_00 * [F^-1]_0 where F is the Hessian of
    the columns from j on (Hassibi & Stork 1992), one explicit inverse for every column.
    """
    weight = weight.clone().double()
    for column in range(weight.shape[1]):
        inverse = torch.linalg.inv(hessian[column:, column:])
        new = change(column, weight[:, column])
        step = (weight[:, column] - new) / inverse[0, 0]
        weight[:, column:] -= step[:, None] * inverse[0][None, :]
        weight[:, column] = new
    return weight


def problem(rows: int = 6, columns: int = 23, tokens: int = 80, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight [out, in] and correlated inputs [tokens, in]."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(columns) + 0.3 * torch.randn(columns, columns, generator=generator)
    x = torch.randn(tokens, columns, generator=generator) @ mix
    return torch.randn(rows, columns, generator=generator), x


def damped(x: Tensor, damping: float) -> Tensor:
    hessian = x.double().t() @ x.double()
    return hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian)).double()


CHANGES: dict[str, Callable[[int, Tensor], Tensor]] = {
    "round": lambda _, values: values.round(),
    "drop every third": lambda column, values: (
        torch.zeros_like(values) if column % 3 == 0 else values.clone()
    ),
    "drop all": lambda _, values: torch.zeros_like(values),
    "keep all": lambda _, values: values.clone(),
}


@pytest.mark.parametrize("block", [5, 23, 128])
@pytest.mark.parametrize("damping", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("name", CHANGES)
def test_the_sweep_is_optimal_brain_surgery(
    monkeypatch: pytest.MonkeyPatch, name: str, damping: float, block: int
) -> None:
    monkeypatch.setattr(solver, "SOLVER_BLOCK", block)
    weight, x = problem()
    expected = surgeon(weight, damped(x, damping), CHANGES[name])
    weight_t = weight.t().contiguous()
    squared_error = sweep_(weight_t, factorise(x.t() @ x, damping, "a"), Rule(CHANGES[name]))
    # The Hessian's condition number is about 1e2..1e3: float32 leaves 4 to 5 of its 7 digits.
    torch.testing.assert_close(weight_t.t().double(), expected, rtol=1e-3, atol=1e-3)
    change = weight.double() - expected
    error = ((change @ damped(x, damping)) * change).sum(dim=1)
    torch.testing.assert_close(squared_error, error, rtol=5e-3, atol=1e-3)


def test_without_damping_the_error_is_that_of_the_outputs() -> None:
    weight, x = problem()
    weight_t = weight.t().contiguous()
    squared_error = sweep_(weight_t, factorise(x.t() @ x, 0.0, "a"), Rule(CHANGES["round"]))
    lost = x @ (weight - weight_t.t()).t()  # [tokens, out]
    torch.testing.assert_close(squared_error, lost.double().square().sum(dim=0), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize(
    ("solver_block", "together", "n_columns"), [(16, 7, 21), (128, 4, 140), (128, 24, 150), (128, 64, 150)]
)
def test_columns_decided_together_are_up_to_date(
    monkeypatch: pytest.MonkeyPatch, solver_block: int, together: int, n_columns: int
) -> None:
    # 7 does not divide 16: a decision over columns 14..20 must not see 16..20 before the errors of 14, 15.
    monkeypatch.setattr(solver, "SOLVER_BLOCK", solver_block)
    weight, x = problem(columns=n_columns)
    seen: dict[int, Tensor] = {}

    @dataclass
    class Look(Rule):
        def decide(self, first: int, weight_t: Tensor, diagonal: Tensor) -> None:
            seen[first] = weight_t.clone()

    sweep_(weight.t().contiguous(), factorise(x.t() @ x, 0.01, "a"), Look(CHANGES["round"], columns=together))
    assert list(seen) == [*range(0, n_columns, together)]
    hessian = damped(x, 0.01)
    for first, columns in seen.items():

        def change(column: int, values: Tensor, first: int = first) -> Tensor:
            return values.round() if column < first else values.clone()

        expected = surgeon(weight, hessian, change)[:, first : first + together]
        torch.testing.assert_close(columns.t().double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n", [0, 1, 128, 129, 300, 577])
def test_a_triangle_is_inverted_whatever_its_size(n: int) -> None:
    lower = torch.randn(n, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64).tril(-1) / 30
    lower.diagonal().fill_(1.5)
    inverse = inverse_of_lower(lower)
    torch.testing.assert_close(inverse, torch.linalg.inv(lower))
    assert torch.equal(inverse, inverse.tril())


@pytest.mark.parametrize("n_inputs", [23, 200, 400])
def test_the_factor_is_the_cholesky_factor_of_the_inverse(n_inputs: int) -> None:
    x = torch.randn(2 * n_inputs, n_inputs, generator=torch.Generator().manual_seed(1))
    factor = factorise(x.t() @ x, 0.01, "a")
    expected = torch.linalg.cholesky(torch.linalg.inv(damped(x, 0.01)), upper=True)
    torch.testing.assert_close(factor.upper.double(), expected, rtol=1e-3, atol=1e-5)


def test_the_factor_is_that_of_the_inverse() -> None:
    _, x = problem()
    factor = factorise(x.t() @ x, 0.01, "a")
    inverse = torch.linalg.inv(damped(x, 0.01))
    torch.testing.assert_close((factor.upper.t() @ factor.upper).double(), inverse, rtol=1e-3, atol=1e-6)
    assert torch.equal(factor.upper, factor.upper.triu())
    assert (factor.damping, factor.raised) == (0.01, 0)
    assert damping_fallbacks(factor, "a") == ()


def test_the_gram_matrix_is_left_as_it_is() -> None:
    _, x = problem()
    gram = x.t() @ x
    before = gram.clone()
    factorise(gram, 0.01, "a")
    assert torch.equal(gram, before)


def test_damping_is_raised_in_counted_steps() -> None:
    # Eigenvalues 1 - 1.5 and 1 + 1.5: the first damping of 0.01 * 10^k above 0.5 is 1.
    factor = factorise(torch.tensor([[1.0, 1.5], [1.5, 1.0]]), 0.01, "a")
    assert factor.raised == 2
    assert factor.damping == pytest.approx(1.0)
    (fallback,) = damping_fallbacks(factor, "a")
    assert (fallback.what, fallback.where, fallback.count) == ("damping raised to 1", "a", 2)


def test_damping_of_zero_can_be_raised_too() -> None:
    x = torch.randn(3, 8)  # rank 3 of 8
    factor = factorise(x.t() @ x, 0.0, "a")
    assert factor.raised > 0
    assert 0 < factor.damping <= 1e-2
    assert torch.isfinite(factor.upper).all()


def test_a_hopeless_hessian_names_its_linear() -> None:
    hopeless = torch.tensor([[1.0, 1e9], [1e9, 1.0]])
    message = r"the Hessian of blocks\.0\.up is not positive definite even with damping 100000:"
    with pytest.raises(RequestError, match=message):
        factorise(hopeless, 0.01, "blocks.0.up")


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_a_damping_that_cannot_be_meant_is_refused(bad: float) -> None:
    with pytest.raises(RequestError, match=re.escape(f"damping {bad} is not a share")):
        solver.check_damping(bad)


def test_inputs_that_are_always_zero_bind_nothing() -> None:
    weight, x = problem()
    x[:, [3, 11]] = 0.0
    alive = [column for column in range(23) if column not in {3, 11}]
    weight_t = weight.t().contiguous()
    squared_error = sweep_(weight_t, factorise(x.t() @ x, 0.0, "a"), Rule(CHANGES["round"]))
    assert torch.equal(weight_t[[3, 11]], weight.t()[[3, 11]].round())
    expected = surgeon(weight[:, alive], damped(x[:, alive], 0.0), CHANGES["round"])
    torch.testing.assert_close(weight_t[alive].t().double(), expected, rtol=1e-3, atol=1e-3)
    lost = x @ (weight - weight_t.t()).t()
    torch.testing.assert_close(squared_error, lost.double().square().sum(dim=0), rtol=1e-3, atol=0.0)


def test_inputs_that_are_all_zero_leave_no_error() -> None:
    weight, _ = problem()
    weight_t = weight.t().contiguous()
    squared_error = sweep_(weight_t, factorise(torch.zeros(23, 23), 0.01, "a"), Rule(CHANGES["drop all"]))
    assert not weight_t.any()
    assert not squared_error.any()


def test_only_a_gram_matrix_will_do() -> None:
    with pytest.raises(TypeError, match="needs the Gram matrix"):
        gram_of(SecondMoments.empty(4, torch.device("cpu")))
    statistic = Gram.empty(4, torch.device("cpu"))
    assert gram_of(statistic) is statistic


@pytest.mark.parametrize(("lost", "whole"), [(float("nan"), 1.0), (1.0, float("inf")), (float("inf"), 1.0)])
def test_an_error_or_an_energy_that_overflows_is_refused_by_name(lost: float, whole: float) -> None:
    with pytest.raises(RequestError, match=r"blocks\.0\.q holds NaN or Inf, or overflows"):
        relative_error(torch.tensor([lost, 0.0]), torch.tensor([whole, 0.0]), "blocks.0.q")


def test_an_error_is_a_share_of_the_energy_however_small_that_is() -> None:
    squared, energy = torch.tensor([1e-40], dtype=torch.float64), torch.tensor([4e-40], dtype=torch.float64)
    assert relative_error(squared, energy, "q") == pytest.approx(0.25)
    assert relative_error(squared, torch.zeros(1), "q") == 0.0
