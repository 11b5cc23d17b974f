"""Tails of spectra against a law that is known, and against the definition, one eigenvalue at a time."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from owl_compress.importance.spectra import positive_eigenvalues, tail_exponent


def with_spectrum(eigenvalues: NDArray[np.float64], n_outputs: int) -> Tensor:
    """A weight whose W^T W has these eigenvalues, in directions of its own."""
    generator = torch.Generator().manual_seed(0)
    n = len(eigenvalues)
    left, right = (
        torch.linalg.qr(torch.randn(rows, n, generator=generator, dtype=torch.float64))[0]
        for rows in (n_outputs, n)
    )
    return (left * torch.tensor(eigenvalues).sqrt()) @ right.t()


def power_law(exponent: float, n: int) -> NDArray[np.float64]:
    """The quantiles of a density λ^-exponent from λ = 1 on."""
    shares = (np.arange(n) + 0.5) / n
    return (1 - shares) ** (-1 / (exponent - 1))


def by_definition(eigenvalues: NDArray[np.float64]) -> float:
    rising = sorted(eigenvalues)
    counts, edges = np.histogram([math.log10(x) for x in rising], bins=100)
    peak = 10 ** edges[list(counts).index(max(counts))]
    found: list[tuple[float, float]] = []
    for i, start in enumerate(rising[:-1]):
        if not math.log10(0.95 * peak) <= start <= 1.5 * peak:
            continue
        tail = rising[i:]
        exponent = 1 + len(tail) / sum(math.log(x / start) for x in tail)
        law = [1 - (x / start) ** (1 - exponent) for x in tail]
        found.append((max(abs(p - j / len(tail)) for j, p in enumerate(law)), exponent))
    return min(found)[1]


@pytest.mark.parametrize("exponent", [2.0, 3.5, 6.0])
def test_the_exponent_of_a_power_law_is_found(exponent: float) -> None:
    weight = with_spectrum(power_law(exponent, 400), 400)
    assert tail_exponent(weight) == pytest.approx(exponent, rel=0.02)


@pytest.mark.parametrize("shape", [(40, 40), (30, 90), (90, 30)])
@pytest.mark.parametrize("scale", [0.02, 1.0, 30.0])
def test_it_is_the_best_hill_estimate_around_the_peak(shape: tuple[int, int], scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = scale * torch.randn(shape, generator=generator) * torch.rand(shape[1], generator=generator)
    squares = np.linalg.svd(weight.double().numpy(), compute_uv=False) ** 2
    assert tail_exponent(weight) == pytest.approx(by_definition(squares), rel=1e-6)
    assert tail_exponent(weight.t()) == pytest.approx(tail_exponent(weight), rel=1e-9)


def test_a_heavier_tail_has_the_smaller_exponent() -> None:
    light, heavy = torch.randn(64, 64), torch.randn(64, 64) * torch.rand(64).pow(-1).clamp(max=50)
    assert 1 < tail_exponent(heavy) < tail_exponent(light)


def test_what_is_zero_up_to_rounding_is_no_eigenvalue() -> None:
    eigenvalues = power_law(3.0, 20)
    weight = torch.cat([with_spectrum(eigenvalues, 30)] * 2, dim=1)  # every column twice: rank 20 of 30
    np.testing.assert_allclose(positive_eigenvalues(weight), 2 * np.sort(eigenvalues), rtol=1e-9)


def test_a_spectrum_without_a_tail_has_no_exponent() -> None:
    assert tail_exponent(torch.eye(8)) == math.inf
    assert math.isnan(tail_exponent(torch.ones(4, 6)))
    assert math.isnan(tail_exponent(torch.zeros(4, 6)))
