"""The same for every group."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from owl_compress.allocators.base import Curve, FloatArray, Group
from owl_compress.allocators.target import Granularity, Target


@dataclass(frozen=True)
class Uniform:
    """value_i = target: what is done where nobody decides, and the baseline of every comparison."""

    name: ClassVar[str] = "uniform"
    granularity: ClassVar[Granularity] = "block"
    reads_scores: ClassVar[bool] = False
    reads_damage: ClassVar[bool] = False

    @classmethod
    def settings_to_try(cls, target: Target) -> tuple[Self, ...]:  # noqa: ARG003  # the protocol's signature
        """Itself: it has no options."""
        return (cls(),)

    def settled(self, target: Target) -> Self:  # noqa: ARG002  # the protocol's signature
        """Has no options."""
        return self

    def curve(self, groups: Sequence[Group], target: Target) -> Curve:  # noqa: ARG002
        """The argument itself, for every group."""

        def curve(value: float) -> FloatArray:
            return np.full(len(groups), value)

        return curve

    def importance(self, groups: Sequence[Group]) -> FloatArray:
        """All groups alike."""
        return np.ones(len(groups))
