"""LSA: blocks that could lose half of their weights at the lowest error keep most."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from owl_compress.allocators.base import Curve, FloatArray, Group, metric_values
from owl_compress.allocators.spread import settled_lam, spread
from owl_compress.allocators.target import Granularity, Target
from owl_compress.options import option

_BETA = (0.08, 0.06, 0.02, 0.04, 0.02, 0.04, 0.1, 0.15, 0.12, 0.08)
"""Half range for a sparsity of at least 0, 0.1, 0.2 …: the table of the authors' code, which ends at 0.9."""


@dataclass(frozen=True)
class Lsa:
    """Layer-wise Sparsity Allocation by minimal linear reconstruction error (Yang et al., ICLR 2026).

    E_i is the mean over the block's linears of the squared change of their outputs without the half of
    their weights that matters least. A low one is read as few outlying weights doing the work, a high one
    as weights that can stand in for each other; so *more* error means *fewer* weights. The importance is
    I_i = 1 - E_i / Σ E, z is I stretched to [0, 1], and value_i = target + 2 · beta · (z_i - mean z).

    We call beta `lam`, because it is OWL's lam in all but the default, which the authors' code looks up by
    sparsity (0.1 from 60 %, 0.15 from 70 %, 0.12 from 80 %; the paper gives a range, not a value). Where we
    differ: the mean of z is weighted by number of weights; with granularity `linear` a departure is the same
    share of a small linear as of a large one, where the authors give both the same number of weights; on
    a grid the largest departure is lam (law `bounded` of `Owl`).

    Attributes:
        metric: E.
        lam: the paper's beta; on an N:M grid in kept weights of M, default 2; in bits default 1.
    """

    name: ClassVar[str] = "lsa"
    granularity: ClassVar[Granularity] = "block"
    reads_scores: ClassVar[bool] = True
    reads_damage: ClassVar[bool] = False
    credit: ClassVar[str] = "[LSA](https://openreview.net/forum?id=xq3lza5IjN)"

    metric: str = option(
        "reconstruction_error",
        "What blocks are ranked by; those with large values keep least. The usual one needs memory for the "
        "Gram matrices of one block's inputs.",
    )
    lam: float | None = option(
        None,
        "The paper's beta, half the range of the budgets: by the sparsity asked for, 0.1 from 60 %, 0.15 "
        "from 70 %; of N:M 2 weights of M, of bits 1.",
    )

    @classmethod
    def settings_to_try(cls, target: Target) -> tuple[Self, ...]:
        """The usual half range, and half of it."""
        usual = settled_lam(None, target, _beta(target))
        return tuple(cls(lam=round(share * usual, 6)) for share in (1.0, 0.5))

    def settled(self, target: Target) -> Self:
        """Settle lam for the unit and grid, and by the share that is removed."""
        return replace(self, lam=settled_lam(self.lam, target, _beta(target)))

    def curve(self, groups: Sequence[Group], target: Target) -> Curve:
        """The law of OWL on the importance."""
        # Negated errors have the same z as I, without the loss of digits in 1 - E / Σ E.
        errors = metric_values(groups, self.metric)
        return spread(groups, target, -errors, settled_lam(self.lam, target, _beta(target)))

    def importance(self, groups: Sequence[Group]) -> FloatArray:
        """I_i = 1 - E_i / Σ E."""
        errors = metric_values(groups, self.metric)
        total = errors.sum()
        return 1 - errors / total if total > 0 else np.ones_like(errors)


def _beta(target: Target) -> float:
    removed = max(1 - target.value, 0.0)  # meant for shares; grids have a default of their own
    return _BETA[min(int(10 * removed + 1e-9), len(_BETA) - 1)]
