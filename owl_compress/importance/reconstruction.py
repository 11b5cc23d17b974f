"""How little can the outputs of a linear change when half of its weights go, and none of the others move?"""

from math import fsum

import torch
from torch import Tensor

_SHARE = 0.5
_GROUP = 128
_CHUNK = 1 << 24  # weights at a time: rows do not depend on each other


def least_error(weight: Tensor, gram: Tensor, share: float = _SHARE, group: int = _GROUP) -> float:
    """Squared change of the outputs, summed over tokens, without the `share` of weights that matters least.

    Algorithm 1 of LSA (Yang et al., ICLR 2026). Without the weights P of an output with weights w its output
    changes by Σ_{i ∈ P} Σ_{j ∈ P} w_i H_ij w_j, H = X^T X. Input by input the weight that adds least to that,
    given those already chosen, joins P; the inputs are taken in groups, and each group gives up its share.

    Where we differ from the authors' code: H is not scaled by 2 / sequences, which no law of theirs notices;
    the last group gives up its share also where it is smaller than the others (theirs as many weights as
    the others, so that up to all of it goes).

    Args:
        weight: shape [out, in].
        gram: X^T X of the inputs, shape [in, in].
        share: of each group that is removed, rounded down.
        group: inputs that are decided together.
    """
    rows = max(1, _CHUNK // weight.shape[1])
    parts = (weight[start : start + rows].float() for start in range(0, weight.shape[0], rows))
    return fsum(_error(part, gram, share, group) for part in parts)


def _error(weight: Tensor, gram: Tensor, share: float, group: int) -> float:
    removed = torch.zeros_like(weight)
    for start in range(0, weight.shape[1], group):
        inside = slice(start, min(start + group, weight.shape[1]))
        pull = removed[:, :start] @ gram[:start, inside]  # Σ_{i ∈ P} w_i H_ij of the groups before
        removed[:, inside] = _least_of_group(weight[:, inside], gram[inside, inside], pull, share)
    return float((removed @ gram).mul_(removed).sum(dtype=torch.float64))


def _least_of_group(weight: Tensor, gram: Tensor, pull: Tensor, share: float) -> Tensor:
    """The weights of one group that are removed, zero elsewhere, shape [rows, group]."""
    twice = 2 * weight
    added = (weight * gram.diagonal()).add_(pull, alpha=2).mul_(weight)  # by each weight, if it went next
    removed = torch.zeros_like(weight)
    for _ in range(int(weight.shape[1] * share)):
        least = added.argmin(dim=1, keepdim=True)
        chosen = weight.gather(1, least)
        removed.scatter_(1, least, chosen)
        added.addcmul_(gram[least[:, 0]].mul_(chosen), twice)
        added.scatter_(1, least, float("inf"))
    return removed
