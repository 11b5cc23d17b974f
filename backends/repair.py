"""Least squares for what is left of an output projection: its kept columns make up for those that go.

With the inputs X of the whole projection and H = X^T X, the kept columns K become

    W' = W_K + W_R H_RK (H_KK + damping * mean diagonal * I)^-1        (R: the columns that go)

which minimises ‖W X - W' X_K‖^2 + damping * mean diagonal * ‖W' - W_K‖^2. Without damping that is the
ordinary least-squares refit W H_:K H_KK^-1. The damping pulls towards the kept columns as they were, not
towards zero, so that on the calibration inputs the error is never above that of leaving them alone. A bias
stays as it is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from owl_compress.backends.solver import damping_fallbacks, factorise
from owl_compress.documents.result import Fallback
from owl_compress.walk.input_statistics import Gram, Statistic


@dataclass(frozen=True)
class Repaired:
    """The kept columns [out, kept] in float32, and what had to be done differently on the way."""

    columns: Tensor
    fallbacks: tuple[Fallback, ...]


def repair_columns(weight: Tensor, gram: Tensor, kept: Tensor, damping: float, name: str) -> Repaired:
    """Refit the columns `kept` of `weight` to the outputs of all of it.

    Args:
        weight: [out, in]; unchanged.
        gram: X^T X of its inputs, [in, in], float32.
        kept: indices of the columns that stay, int64 [kept], without repetition.
        damping: share of the mean diagonal of H_KK; raised in steps where that is not positive definite.
        name: the linear that is named when it cannot be done.

    Raises:
        RequestError: not positive definite after all steps of damping.
    """
    gone = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    gone[kept] = False
    removed = gone.nonzero().flatten()
    factor = factorise(gram[kept][:, kept], damping, name)
    # [out, removed] @ [removed, kept]: what the removed columns gave, seen through the kept inputs.
    lost = weight[:, removed].float() @ gram[removed][:, kept]
    columns = weight[:, kept].float() + lost @ factor.upper.t() @ factor.upper
    return Repaired(columns, damping_fallbacks(factor, name))


def output_energy(weight: Tensor, statistic: Statistic | None) -> float:
    """Squared output of `weight` [out, in] over all tokens, as far as the statistic tells.

    With a Gram matrix H it is tr(W H W^T), exactly; with second moments alone inputs count as uncorrelated;
    without either it is the sum of the squared weights.
    """
    if isinstance(statistic, Gram):
        return max(0.0, float(statistic.output_energy(weight.float().t()).sum()))
    squares = weight.float().square()
    if statistic is None:
        return float(squares.sum(dtype=torch.float64))
    return float(squares.sum(dim=0, dtype=torch.float64) @ statistic.second_moments)
