"""Successive halving: many plans on little text, then few on much, every round at about the same cost.

Jamieson and Talwalkar (arXiv 1502.07943) drop half of the contestants in each round. Here two of three go:
plans of one budget differ enough for that on a few hundred tokens (`benchmarks/tune.py`).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from owl_compress.documents.tuning import TuningRound

_KEPT_OF = 3
"""Of so many plans one stays in."""

_FINALISTS = 4
"""No more plans than these are in the last round."""

_FEWEST = 2
_JUDGING_OF_LAST = 4
"""Judging windows of the last round, for each of the first."""


@dataclass(frozen=True)
class Means:
    """Windows for the rounds: as many as the backend sees at most, and as the first one judges on."""

    statistics_windows: int
    judging_windows: int


def rounds_of(n_plans: int, means: Means) -> tuple[TuningRound, ...]:
    """The rounds for so many plans, equal shares among them.

    The last one has all windows of statistics, the one before it a third of them, and so on, two at least;
    it is judged on four times as many windows as the first, the one before it on twice as many.
    """
    counts = [n_plans]
    while counts[-1] > _FINALISTS:
        counts.append(max(-(-counts[-1] // _KEPT_OF), _FEWEST))
    found = []
    for left, count in zip(reversed(range(len(counts))), counts, strict=True):
        least = min(_FEWEST, means.statistics_windows)
        found.append(
            TuningRound(
                plans=count,
                statistics_windows=max(means.statistics_windows // _KEPT_OF**left, least),
                judging_windows=means.judging_windows * max(_JUDGING_OF_LAST // 2**left, 1),
            )
        )
    return tuple(found)


def judging_windows(rounds: Iterable[TuningRound]) -> int:
    """All windows to judge on: each round has its own."""
    return sum(one.judging_windows for one in rounds)
