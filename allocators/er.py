"""Erdős–Rényi: density by the shape of each matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import ClassVar, Self

import numpy as np

from owl_compress.allocators.base import Curve, FloatArray, Group, sizes, weighted_mean
from owl_compress.allocators.target import Granularity, Target


@dataclass(frozen=True)
class Er:
    """density_i ∝ (in + out) / (in · out) (SET, arXiv 1707.04780; ERK in RigL, arXiv 1911.11134).

    What would exceed the upper bound is frozen there and the rest re-solved, which is one scale for all,
    found so that the mean holds after clipping. It decides by shape, so its granularity is `linear`; with
    granularity `block` a group's raw value is the weighted mean over its linears, and equal blocks get equal
    budgets.
    """

    name: ClassVar[str] = "er"
    granularity: ClassVar[Granularity] = "linear"
    reads_scores: ClassVar[bool] = False
    reads_damage: ClassVar[bool] = False

    def settled(self, target: Target) -> Self:  # noqa: ARG002  # the protocol's signature
        """Has no options."""
        return self

    def curve(self, groups: Sequence[Group], target: Target) -> Curve:  # noqa: ARG002
        """The raw values, scaled by the argument."""
        raw = erdos_renyi(groups)
        raw = raw / weighted_mean(raw, sizes(groups))

        def curve(scale: float) -> FloatArray:
            return scale * raw

        return curve

    def importance(self, groups: Sequence[Group]) -> FloatArray:
        """The raw values."""
        return erdos_renyi(groups)


def erdos_renyi(groups: Sequence[Group]) -> FloatArray:
    """(in + out) / (in · out) of each group, the weighted mean over its linears.

    Weighted by in · out that is Σ (in + out) / Σ in · out.
    """
    return np.array([fsum(map(sum, (x.shape for x in group.linears))) / group.n_weights for group in groups])
