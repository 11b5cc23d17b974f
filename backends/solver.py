"""The second-order solver: columns are changed one after another, later columns make up for each change.

Source: Optimal Brain Surgeon in the order-fixed form of SparseGPT (arXiv 2301.00774) and GPTQ (arXiv
2210.17323). One factorisation serves all linears that read the same input.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Protocol

import torch
from torch import Tensor

from owl_compress.documents.result import Fallback
from owl_compress.errors import RequestError
from owl_compress.models.state import is_finite
from owl_compress.walk.input_statistics import Gram, Statistic

SOLVER_BLOCK = 128
"""Columns between two updates of all later columns; changes speed, and what SparseGPT compares at a time."""

_FEW_COLUMNS = 16  # that are swept one after the other
_SMALL_TRIANGLE = 128  # rows of a triangular matrix that is inverted as a whole
_DAMPING_STEPS = 8
_DAMPING_FACTOR = 10.0
_LEAST_RAISED = 1e-6  # where a damping of zero starts to climb from


@dataclass(frozen=True, eq=False)
class Factor:
    """Upper Cholesky factor U of the inverse damped Gram matrix, inverse = U^T U.

    `upper` has shape [in, in]; `dead`, bool [in], marks inputs that were always zero. `damping` is the share
    of the mean diagonal that was added at last, `raised` how often it had to be multiplied by ten before the
    matrix was positive definite.
    """

    upper: Tensor
    dead: Tensor
    damping: float
    raised: int


class ColumnRule(Protocol):
    """Decides what a column becomes. `columns` is how many columns are decided together."""

    columns: int

    def decide(self, first: int, weight_t: Tensor, diagonal: Tensor) -> None:
        """Look at columns from `first` on: `weight_t` [columns, out] as updated so far, U_jj [columns]."""
        ...

    def apply(self, column: int, values: Tensor) -> Tensor:
        """The new values of one column, shape [out]."""
        ...


def check_damping(damping: float) -> None:
    """Refuse a damping that cannot be meant.

    Raises:
        RequestError: negative, infinite or not a number.
    """
    if not 0 <= damping < float("inf"):
        raise RequestError(
            f"damping {damping} is not a share of the mean diagonal: give 0 or more, as in 0.01"
        )


def factorise(gram: Tensor, damping: float, name: str) -> Factor:
    """Factorise the inverse of gram + damping * mean(diagonal) * I, with more damping where that fails.

    Inputs that were always zero get a one on the diagonal: nothing depends on them.

    With the inputs in reverse, gram = L L^T with L lower; seen from the front again L is upper, and its
    inverse is the factor: one factorisation and the inverse of a triangle, where the published codes
    factorise, invert all of it and factorise again.

    Args:
        gram: X^T X, shape [in, in], float32; unchanged.
        damping: share of the mean diagonal that is added to the diagonal.
        name: the linear that is named when it cannot be done.

    Raises:
        RequestError: not positive definite after all steps of damping.
    """
    diagonal = gram.diagonal()
    dead = diagonal == 0
    mean = diagonal.mean()
    share = damping
    for raised in range(_DAMPING_STEPS):
        damped = gram.flip(0, 1)
        damped.diagonal().add_(share * mean)
        damped.diagonal()[dead.flip(0)] = 1.0
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper = inverse_of_lower(lower).flip(0, 1)
            if is_finite(upper):
                return Factor(upper, dead, share, raised)
        share = max(share, _LEAST_RAISED) * _DAMPING_FACTOR
    raise RequestError(
        f"the Hessian of {name} is not positive definite even with damping {share / _DAMPING_FACTOR:g}: "
        "use more calibration text, or --dtype float32"
    )


def inverse_of_lower(lower: Tensor) -> Tensor:
    """The inverse of a lower triangular matrix [n, n], itself lower: by halves, so that most is products."""
    n = len(lower)
    if n <= _SMALL_TRIANGLE:
        identity = torch.eye(n, dtype=lower.dtype, device=lower.device)
        inverse: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
        return inverse
    half = n // 2
    first, last = inverse_of_lower(lower[:half, :half]), inverse_of_lower(lower[half:, half:])
    inverse = torch.zeros_like(lower)
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[half:, :half] = -(last @ (lower[half:, :half] @ first))
    return inverse


def sweep_(weight_t: Tensor, factor: Factor, rule: ColumnRule) -> Tensor:
    """Apply `rule` to every column in order; the columns after it take up the error it makes.

    Args:
        weight_t: the transposed weight, shape [in, out], float32 and contiguous; changed in place.
        factor: of the Gram matrix of the inputs.
        rule: what a column becomes.

    Returns:
        The squared output error of each output, under the damped Gram matrix, shape [out], float64.
    """
    n_inputs, n_outputs = weight_t.shape
    upper = factor.upper
    squared_error = torch.zeros(n_outputs, dtype=torch.float64, device=weight_t.device)
    # What is decided together must be up to date: no decision reaches over the end of a solver block.
    length = max(1, SOLVER_BLOCK // rule.columns) * rule.columns
    for start in range(0, n_inputs, length):
        stop = min(start + length, n_inputs)
        errors = torch.empty(stop - start, n_outputs, device=weight_t.device)  # [columns, out]
        _sweep_some_(weight_t, upper, rule, start, errors)
        weight_t[stop:].addmm_(upper[start:stop, stop:].t(), errors, alpha=-1.0)
        errors[factor.dead[start:stop]] = 0.0  # a weight that only ever met zeros makes no error
        squared_error += errors.square_().sum(dim=0, dtype=torch.float64)
    return squared_error


def _sweep_some_(weight_t: Tensor, upper: Tensor, rule: ColumnRule, first: int, errors: Tensor) -> None:
    """The columns from `first` on, up to date by then, that `errors` [columns, out] has room for; by halves.

    The second half takes up the errors of the first in one product, so that outer products, which run through
    memory for every column, only reach to the end of a few columns.
    """
    n_columns = len(errors)
    last = first + n_columns
    if n_columns > _FEW_COLUMNS:
        half = n_columns // 2
        if n_columns > rule.columns:  # the second half begins with a decision
            half = max(half // rule.columns, 1) * rule.columns
        _sweep_some_(weight_t, upper, rule, first, errors[:half])
        middle = first + half
        weight_t[middle:last].addmm_(upper[first:middle, middle:last].t(), errors[:half], alpha=-1.0)
        _sweep_some_(weight_t, upper, rule, middle, errors[half:])
        return
    for column, error in enumerate(errors, start=first):
        if column % rule.columns == 0:
            decided = slice(column, min(column + rule.columns, len(weight_t)))
            rule.decide(column, weight_t[decided], upper.diagonal()[decided])
        values = weight_t[column]
        new = rule.apply(column, values)
        torch.sub(values, new, out=error).div_(upper[column, column])
        values.copy_(new)
        weight_t[column + 1 : last].addr_(upper[column, column + 1 : last], error, alpha=-1.0)


def gram_of(statistic: Statistic | None) -> Gram:
    """The Gram matrix a second-order backend declared it needs."""
    if not isinstance(statistic, Gram):
        raise TypeError("a second-order backend needs the Gram matrix of its inputs")
    return statistic


def relative_error(squared_error: Tensor, energy: Tensor, name: str) -> float:
    """The error of a linear over its output energy, both by output, float64 [out]; zero where there is none.

    Raises:
        RequestError: they are not finite; naming the linear.
    """
    lost, whole = float(squared_error.sum()), float(energy.sum())
    if not isfinite(lost) or not isfinite(whole):
        raise RequestError(
            f"{name} holds NaN or Inf, or overflows: check the checkpoint, or try --dtype float32"
        )
    return lost / whole if whole > 0 else 0.0


def damping_fallbacks(factor: Factor, name: str) -> tuple[Fallback, ...]:
    """What the result says of a Hessian that needed more damping."""
    if not factor.raised:
        return ()
    return (Fallback(what=f"damping raised to {factor.damping:g}", where=name, count=factor.raised),)
