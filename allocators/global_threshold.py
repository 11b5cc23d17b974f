"""One threshold on the scores of the whole model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from owl_compress.allocators.base import Curve, FloatArray, Group
from owl_compress.allocators.target import Granularity, Target
from owl_compress.documents.report import ScoreHistogram
from owl_compress.errors import RequestError


@dataclass(frozen=True)
class GlobalThreshold:
    """Every group keeps its share of the scores |W| · ‖X‖ above one threshold (OWL's baseline "global").

    The threshold is found on the report's histograms: exact at the edges of bins; inside the bin that it
    falls into, every group keeps one common fraction of its scores in that bin. Scores of zero go first. In
    bits the share kept is stretched over the choices: low + share · (high - low).
    """

    name: ClassVar[str] = "global"
    granularity: ClassVar[Granularity] = "linear"
    reads_scores: ClassVar[bool] = True
    reads_damage: ClassVar[bool] = False

    def settled(self, target: Target) -> Self:  # noqa: ARG002  # the protocol's signature
        """Has no options."""
        return self

    def curve(self, groups: Sequence[Group], target: Target) -> Curve:
        """Share kept with the top bins (the argument, fractions allowed) of the histograms' common axis."""
        floor, ceiling = target.outer_bounds
        shares = _kept_shares(groups)  # [groups, bins + 1]
        last = shares.shape[1] - 1

        def curve(top_bins: float) -> FloatArray:
            position = min(max(top_bins, 0.0), float(last))
            whole = min(int(position), last - 1)
            kept: FloatArray = shares[:, whole] + (position - whole) * (
                shares[:, whole + 1] - shares[:, whole]
            )
            return floor + (ceiling - floor) * kept

        return curve

    def importance(self, groups: Sequence[Group]) -> None:  # noqa: ARG002
        """None: a distribution of scores is no single number."""
        return


def _kept_shares(groups: Sequence[Group]) -> FloatArray:
    """Share of each group's scores in its top k bins, k = 0, 1, …, and last those of exactly zero."""
    histograms = [[_histogram(group, index) for index in range(len(group.linears))] for group in groups]
    flat = [histogram for row in histograms for histogram in row]
    if len({histogram.bins_per_octave for histogram in flat}) > 1:
        raise RequestError("the report's score histograms have bins of different width: measure again")
    first = min(histogram.first_bin for histogram in flat)
    n_bins = max(histogram.first_bin + len(histogram.counts) for histogram in flat) - first
    counts = np.zeros((len(groups), n_bins + 1))
    for row, members in zip(counts, histograms, strict=True):
        for histogram in members:
            # Falling scores: the highest bin first, the zeros in the last column.
            end = n_bins - (histogram.first_bin - first)
            row[end - len(histogram.counts) : end] += histogram.counts[::-1]
            row[n_bins] += histogram.n_zero
    kept: FloatArray = np.concatenate([np.zeros((len(groups), 1)), counts.cumsum(axis=1)], axis=1)
    return kept / kept[:, -1:]


def _histogram(group: Group, index: int) -> ScoreHistogram:
    histogram = group.linears[index].score_histogram
    if histogram is None:
        name = group.linears[index].name
        raise RequestError(f"the report has no score histogram for {name}, which global needs: measure again")
    return histogram
