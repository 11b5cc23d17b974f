"""Erdős–Rényi with the last matrix kept dense."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from owl_compress.allocators.base import Curve, FloatArray, Group, sizes, weighted_mean
from owl_compress.allocators.er import erdos_renyi
from owl_compress.allocators.target import Granularity, Target
from owl_compress.errors import RequestError


@dataclass(frozen=True)
class ErPlus:
    """The law of `er` with the last linear kept dense and the rest solved again for the same average.

    The description is OWL's (arXiv 2310.05175, after Liu et al. 2022): "forces the last layer dense if it is
    not, keeping the overall count". Last means last in the order of execution: the last linear of the last
    block, or with granularity `block` that block. On a grid it gives up a step only where the budget cannot
    be met else.
    """

    name: ClassVar[str] = "er-plus"
    granularity: ClassVar[Granularity] = "linear"
    reads_scores: ClassVar[bool] = False
    reads_damage: ClassVar[bool] = False

    def settled(self, target: Target) -> Self:  # noqa: ARG002  # the protocol's signature
        """Has no options."""
        return self

    def curve(self, groups: Sequence[Group], target: Target) -> Curve:
        """The raw values scaled by the argument; the last group always at the upper bound.

        Raises:
            RequestError: the last group alone takes more than the others can give up.
        """
        low, high = target.solver_bounds
        weights, raw = sizes(groups), erdos_renyi(groups)
        raw = raw / weighted_mean(raw, weights)
        forced = np.full(len(groups), low)
        forced[-1] = high
        least = weighted_mean(forced, weights)
        if least > target.value + 1e-12:
            raise RequestError(
                f"er-plus keeps {groups[-1].name} at {high:g}, which alone makes the average {least:.4g}, "
                f"above the target {target.value:g}: raise the target, or use er"
            )

        def curve(scale: float) -> FloatArray:
            values = scale * raw
            values[-1] = high
            return values

        return curve

    def importance(self, groups: Sequence[Group]) -> None:  # noqa: ARG002
        """None: the last group is an exception to any order."""
        return
