"""AlphaPruning: blocks whose spectra have heavy tails keep more."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from owl_compress.allocators.base import Curve, FloatArray, Group, metric_values, sizes, weighted_mean
from owl_compress.allocators.spread import rounded_down, settled_lam, spread, unit_range
from owl_compress.allocators.target import Granularity, Target
from owl_compress.errors import RequestError
from owl_compress.options import option

_TAU = 0.2
_SLACK = 1e-12


@dataclass(frozen=True)
class Alpha:
    """AlphaPruning (arXiv 2410.10912): the heavier the tails of its weights' spectra, the more a block keeps.

    With q_i the mean over the block's linears of the exponent of that tail (a heavy tail has a small one)
    and z_i = (q_i - min q) / (max q - min q), the removed share is

        S_i = eta · (s1 + z_i · (s2 - s1)),  s1 = 1 - tau, s2 = 1 + tau,

    with eta such that the mean of S_i, weighted by number of weights, is the one asked for. The same law
    stands for widths. Where bounds clip it, eta is found again.

    Where we differ: blocks of equal q get the uniform plan (the authors' code divides by zero). Mixed N:M
    and bits have no removed share to scale: there the largest departure from the target is tau, in kept
    weights of M (default 2) or in bits (default 1), in the shape of -z (law `bounded` of `Owl`). The
    authors choose tau by model and backend: 0.2 or 0.3 for Wanda and SparseGPT, 0.3 to 0.5 for magnitude. Our
    default is what they take for LLaMA-7B with Wanda; the 0.3 that their code falls back to can remove more
    than all of a block where one exponent lies far above the others, and is then refused.

    Attributes:
        metric: q; large values lose most.
        tau: as above.
    """

    name: ClassVar[str] = "alpha"
    granularity: ClassVar[Granularity] = "block"
    reads_scores: ClassVar[bool] = True
    reads_damage: ClassVar[bool] = False
    credit: ClassVar[str] = "[AlphaPruning](https://arxiv.org/abs/2410.10912)"

    metric: str = option("alpha", "What blocks are ranked by; those with large values keep least.")
    tau: float | None = option(
        None,
        "Half the range of the sparsities, as a share of their average: 0.2; of N:M the largest departure, "
        "2 weights of M; of bits 1.",
        at_least=0,
    )

    @classmethod
    def settings_to_try(cls, target: Target) -> tuple[Self, ...]:
        """The usual tau, half of it, and what the authors take for other models and backends."""
        usual = settled_lam(None, target, _TAU, name="tau")
        return tuple(cls(tau=round(share * usual, 6)) for share in (1.0, 0.5, 1.5))

    def settled(self, target: Target) -> Self:
        """Settle tau for the unit and grid.

        Raises:
            RequestError: tau is wider than the unit, or no block would lose anything.
        """
        tau = settled_lam(self.tau, target, _TAU, name="tau")
        if target.grid is None and tau >= 1:
            raise RequestError(
                f"tau {tau:g} would leave a block whole: give one below 1; the default is {_TAU:g}"
            )
        return replace(self, tau=tau)

    def curve(self, groups: Sequence[Group], target: Target) -> Curve:
        """The law, scaled by its argument: the mean of what is kept.

        Raises:
            RequestError: the law removes more than there is of a group, and no bounds were given to clip it.
        """
        exponents = metric_values(groups, self.metric)
        tau = settled_lam(self.tau, target, _TAU, name="tau")
        if target.grid is not None:
            return spread(groups, target, -exponents, tau, "bounded")
        removed = 1 + tau * (2 * unit_range(exponents) - 1) if np.ptp(exponents) > 0 else np.ones(len(groups))
        shape = removed / weighted_mean(removed, sizes(groups))
        if not target.is_bounded_by_user:
            _check_inside(groups, target, shape, tau)

        def curve(kept: float) -> FloatArray:
            return 1 - (1 - kept) * shape

        return curve

    def importance(self, groups: Sequence[Group]) -> FloatArray:
        """The metric mirrored within its own range, min q + max q - q."""
        exponents = metric_values(groups, self.metric)
        return float(exponents.min()) + (float(exponents.max()) - exponents)


def _check_inside(groups: Sequence[Group], target: Target, shape: FloatArray, tau: float) -> None:
    """Refuse a law by which a group would lose more than it has; `shape` is S_i over the mean of S."""
    removed = (1 - target.value) * shape
    worst = int(removed.argmax())
    if removed[worst] <= 1 + _SLACK:
        return
    # S · (1 + tau) / (1 + tau · centre) <= 1, with centre the mean of 2 z - 1 and z = 1 for the worst.
    centre = ((1 + tau) / float(shape.max()) - 1) / tau
    fitting = rounded_down(target.value / (1 - target.value - centre))
    raise RequestError(
        f"tau {tau:g} removes {removed[worst]:.4g} of {groups[worst].name}, more than all of it: "
        f"use tau {fitting:g} or less, or --low to clip"
    )
