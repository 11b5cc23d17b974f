"""How heavy is the tail of a weight's spectrum? The exponent of a power law, fitted to its eigenvalues."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_N_BINS = 100
_BELOW_PEAK = 0.95
_ABOVE_PEAK = 1.5

Floats = NDArray[np.float64]


def tail_exponent(weight: Tensor) -> float:
    """The exponent of the power law that the upper eigenvalues of W^T W follow, for W of shape [out, in].

    PL_Alpha_Hill of AlphaPruning (arXiv 2410.10912, section 3), as the authors' code computes it: with the
    n = N - i eigenvalues from λ_i on, rising, alpha = 1 + n / Σ_j ln(λ_j / λ_i), the Hill estimator. Which
    λ_i the tail starts at is decided around the peak of the density of log10 λ (100 bins from the least to
    the largest): of the eigenvalues up to 1.5 times the peak, the one whose law is nearest to the
    eigenvalues above it, in the distance of Kolmogorov and Smirnov.

    Two traits of that code are kept, because they made the published tables: the sum counts λ_i itself (the
    paper's does not), and the lower end of the search is log10(0.95 · peak) where 0.95 · peak was to be
    expected, so that eigenvalues far below the peak are tried as well. Where we differ: the eigenvalues
    are those of the smaller of W W^T and W^T W in float64 (theirs are squared singular values in float32),
    and those that are zero up to rounding are left out, because they have no logarithm.

    Infinite where all eigenvalues are equal, and NaN where fewer than two are positive.
    """
    eigenvalues = positive_eigenvalues(weight)
    if len(eigenvalues) < 2:
        return float("nan")
    logs = np.log(eigenvalues)
    sizes = np.arange(len(logs), 0, -1)  # of the tail that starts at each eigenvalue
    excess = np.cumsum(logs[::-1])[::-1] / sizes - logs  # mean of ln(λ_j / λ_i) over the tail
    starts = _tail_starts(eigenvalues)
    starts = starts[excess[starts] > 0]
    if len(starts) == 0:
        return float("inf")
    exponents = 1 + 1 / excess[starts]
    distances = [_distance(logs[i:], exponent) for i, exponent in zip(starts, exponents, strict=True)]
    return float(exponents[int(np.argmin(distances))])


def positive_eigenvalues(weight: Tensor) -> Floats:
    """The squared singular values of a weight, rising, without those that are zero up to rounding."""
    is_wide = weight.shape[0] <= weight.shape[1]
    wide = (weight if is_wide else weight.t()).detach().double()
    values: Floats = torch.linalg.eigvalsh(wide @ wide.t()).cpu().numpy()
    positive: Floats = values[values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)]
    return positive


def _tail_starts(eigenvalues: Floats) -> NDArray[np.intp]:
    """Indices of the eigenvalues at which the tail may start; never the last one."""
    counts, edges = np.histogram(np.log10(eigenvalues), bins=_N_BINS)
    peak = 10.0 ** edges[int(counts.argmax())]
    inside = (eigenvalues >= np.log10(_BELOW_PEAK * peak)) & (eigenvalues <= _ABOVE_PEAK * peak)
    return np.flatnonzero(inside[:-1])


def _distance(logs: Floats, exponent: float) -> float:
    """Largest difference of the law's distribution function from that of a tail, given as logarithms."""
    below = np.arange(len(logs)) / len(logs)
    return float(np.abs(1 - np.exp((logs - logs[0]) * (1 - exponent)) - below).max())
