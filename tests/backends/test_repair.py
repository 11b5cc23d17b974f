"""The repair against torch's own least squares on explicit inputs."""

import re

import pytest
import torch
from torch import Tensor

from owl_compress.backends.repair import output_energy, repair_columns
from owl_compress.errors import RequestError
from owl_compress.walk.input_statistics import Gram, SecondMoments

KEPT = torch.tensor([0, 3, 4, 7, 8, 11])


def inputs(tokens: int = 200, features: int = 12) -> Tensor:
    """Inputs that depend on each other, so that the kept ones can make up for the others."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(features, features, generator=generator)
    return torch.randn(tokens, features, generator=generator) @ mixing


def weights(rows: int = 5, features: int = 12) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(4))


def gathered(kind: type[Gram] | type[SecondMoments], x: Tensor) -> Gram | SecondMoments:
    statistic = kind.empty(x.shape[1], x.device)
    statistic.add(x)
    return statistic


def gram(x: Tensor) -> Tensor:
    return x.t() @ x


def error(weight: Tensor, columns: Tensor, x: Tensor, kept: Tensor = KEPT) -> float:
    """Squared difference of the outputs, token by token."""
    return float((x @ weight.t() - x[:, kept] @ columns.t()).double().square().sum())


def test_without_damping_it_is_ordinary_least_squares() -> None:
    x, weight = inputs().double(), weights().double()
    expected = torch.linalg.lstsq(x[:, KEPT], x @ weight.t()).solution.t()
    repaired = repair_columns(weight, gram(x).float(), KEPT, 0.0, "it")
    assert torch.allclose(repaired.columns.double(), expected, rtol=1e-3, atol=1e-3)
    assert repaired.fallbacks == ()


def test_with_damping_it_is_least_squares_that_pulls_towards_the_kept_columns() -> None:
    x, weight, damping = inputs().double(), weights().double(), 0.3
    ridge = damping * float(x[:, KEPT].square().sum(dim=0).mean())
    # Rows sqrt(ridge) * I below the inputs, with the kept columns as their outputs.
    left = torch.cat([x[:, KEPT], ridge**0.5 * torch.eye(len(KEPT), dtype=torch.float64)])
    right = torch.cat([x @ weight.t(), ridge**0.5 * weight[:, KEPT].t()])
    expected = torch.linalg.lstsq(left, right).solution.t()
    repaired = repair_columns(weight, gram(x).float(), KEPT, damping, "it")
    assert torch.allclose(repaired.columns.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("damping", [0.0, 0.01, 1.0, 100.0])
@pytest.mark.parametrize("n_kept", [1, 6, 11, 12])
def test_the_error_is_never_above_that_of_leaving_them_alone(damping: float, n_kept: int) -> None:
    x, weight = inputs(), weights()
    kept = torch.randperm(12, generator=torch.Generator().manual_seed(n_kept))[:n_kept].sort().values
    repaired = repair_columns(weight, gram(x), kept, damping, "it")
    alone = error(weight, weight[:, kept], x, kept)
    assert error(weight, repaired.columns, x, kept) <= alone * (1 + 1e-5) + 1e-6
    if 1 < n_kept < 12 and damping < 1:
        assert error(weight, repaired.columns, x, kept) < 0.9 * alone


def test_the_weight_is_left_as_it_is() -> None:
    weight = weights()
    repair_columns(weight, gram(inputs()), KEPT, 0.01, "it")
    assert torch.equal(weight, weights())


def test_inputs_that_were_always_zero_keep_their_columns() -> None:
    x, weight = inputs(), weights()
    x[:, 3] = 0.0
    repaired = repair_columns(weight, gram(x), KEPT, 0.0, "it")
    assert torch.allclose(repaired.columns[:, 1], weight[:, 3])
    assert error(weight, repaired.columns, x) < error(weight, weight[:, KEPT], x)


def test_more_damping_is_counted_and_too_little_text_refused() -> None:
    twice = inputs(tokens=2)  # rank two
    repaired = repair_columns(weights(), gram(twice), KEPT, 0.0, "model.o")
    assert error(weights(), repaired.columns, twice) < error(weights(), weights()[:, KEPT], twice)
    (fallback,) = repaired.fallbacks
    assert re.fullmatch(r"damping raised to [\de.-]+", fallback.what)
    assert fallback.where == "model.o"
    assert fallback.count >= 1
    with pytest.raises(RequestError, match=r"Hessian of model\.o is not positive definite"):
        repair_columns(weights(), torch.full((12, 12), float("nan")), KEPT, 0.01, "model.o")


def test_the_energy_of_an_output() -> None:
    x, weight = inputs().double(), weights().double()
    outputs = x @ weight.t()
    exact = float(outputs.square().sum())
    assert output_energy(weight, gathered(Gram, x)) == pytest.approx(exact, rel=1e-5)
    apart = sum(float((x[:, [j]] @ weight[:, [j]].t()).square().sum()) for j in range(12))
    assert output_energy(weight, gathered(SecondMoments, x)) == pytest.approx(apart, rel=1e-5)
    assert output_energy(weight, None) == pytest.approx(float(weight.square().sum()), rel=1e-6)
    assert abs(apart - exact) > 0.01 * exact  # the inputs do depend on each other
