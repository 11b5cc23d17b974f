"""What a sensitivity profile costs: which trials there are to make, and how many tokens they take."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import fsum

from owl_compress.documents.sensitivity import Measure, SensitivityProfile
from owl_compress.importance.parts import Part

LOCAL = frozenset({Measure.OUTPUT_ERROR, Measure.FISHER})
"""Measures of the changed block alone, which run none behind it."""

_PASSES_OF_FISHER = 3
"""A pass forward, one more to take gradients in, and the way back."""


@dataclass(frozen=True)
class ProfileCost:
    """What a profile takes, told before the trials begin.

    `forward_tokens` counts tokens through the whole model: a trial in the middle of it counts half. `seconds`
    are those of the forward passes, from the time that the first took.
    """

    trials: int
    forward_tokens: float
    seconds: float


def unmeasured(
    parts: Sequence[Part], levels: Sequence[float], known: SensitivityProfile | None
) -> list[tuple[Part, float]]:
    """Each part with each of the levels that `known` does not have of it."""
    there = {part.name: part.known for part in known.parts} if known else {}
    return [(part, level) for part in parts for level in levels if level not in there.get(part.name, ())]


def forward_tokens(
    blocks: Iterable[int], n_blocks: int, n_damage_tokens: int, n_seen_tokens: int, measure: Measure
) -> float:
    """What a profile costs, in tokens through the whole model.

    Args:
        blocks: the number of the block that each trial changes.
        n_blocks: blocks of the model.
        n_damage_tokens: tokens that damage is measured on.
        n_seen_tokens: tokens that statistics are taken on.
        measure: one of the model's output runs every later block, another the changed one alone.
    """
    shares = fsum((1 if measure in LOCAL else n_blocks - index) / n_blocks for index in blocks)
    passes = 2 + (_PASSES_OF_FISHER if measure is Measure.FISHER else 0)
    return n_seen_tokens + n_damage_tokens * (passes + shares)
