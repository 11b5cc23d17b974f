"""Scores |W_ij| * scale_j, streamed: summed, counted, binned and ranked without ever being held at once.

With scale_j = ‖X_j‖_2 these are the scores of Wanda and OWL. A `ScorePool` may span one linear, the
linears of a block, or those of a whole model.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import fsum

import numpy as np
import torch
from torch import Tensor

from owl_compress.documents.report import ScoreHistogram

_CHUNK = 1 << 18  # scores at a time: with what is made of them they stay in a CPU's cache
_CHUNK_ON_GPU = 1 << 22  # enough to fill one
_PREFIX_BITS = 16
_N_PREFIXES = 1 << (32 - _PREFIX_BITS - 1)  # the sign bit of a score is never set


@dataclass(frozen=True, eq=False)
class ScoredWeight:
    """One weight of shape [out, in] with the scale of its columns, shape [in], float32.

    Sum and counts are remembered, so that a pool over several weights need not look at them again.

    Attributes:
        weight: of the linear.
        scale: of its columns.
        gram: X^T X of its inputs, shape [in, in], float32; None where nobody asked for it.
    """

    weight: Tensor
    scale: Tensor
    gram: Tensor | None = None
    _known: dict[Callable[["ScoredWeight"], float], float] = field(
        default_factory=dict, init=False, repr=False
    )

    def once(self, figure: Callable[["ScoredWeight"], float]) -> float:
        """`figure` of this weight, worked out once for all pools that it is in."""
        if figure not in self._known:
            self._known[figure] = figure(self)
        return self._known[figure]

    def magnitudes(self) -> Iterator[Tensor]:
        """|W| in float32, some rows at a time, shape [rows, in]; the caller may overwrite it."""
        size = _CHUNK if self.weight.device.type == "cpu" else _CHUNK_ON_GPU
        rows = max(1, size // self.weight.shape[1])
        for start in range(0, self.weight.shape[0], rows):
            yield self.weight[start : start + rows].abs().float()

    def chunks(self) -> Iterator[Tensor]:
        """Scores in float32, some rows at a time, shape [rows, in]."""
        for part in self.magnitudes():
            yield part.mul_(self.scale)

    @cached_property
    def total(self) -> float:
        """Sum of the scores."""
        return sum(_sum(chunk) for chunk in self.chunks())

    @cached_property
    def l1(self) -> float:
        """Sum of |W_ij|."""
        return sum(_sum(part) for part in self.magnitudes())

    @cached_property
    def squared_l2(self) -> float:
        """Sum of W_ij^2."""
        return sum(_sum(part.square_()) for part in self.magnitudes())

    @cached_property
    def prefix_counts(self) -> Tensor:
        """Number of scores by the upper bits of their float32 pattern, which rises with the score."""
        counts = torch.zeros(_N_PREFIXES, dtype=torch.int64, device=self.weight.device)
        for chunk in self.chunks():
            counts += torch.bincount(_bits(chunk) >> _PREFIX_BITS, minlength=_N_PREFIXES)
        return counts.cpu()


@dataclass(frozen=True, eq=False)
class ScorePool:
    """Scores of one or several weights, treated as one population."""

    members: tuple[ScoredWeight, ...]

    @property
    def size(self) -> int:
        """Number of scores."""
        return sum(member.weight.numel() for member in self.members)

    def chunks(self) -> Iterator[Tensor]:
        """All scores, a chunk at a time, in float32."""
        for member in self.members:
            yield from member.chunks()

    @property
    def mean(self) -> float:
        """Arithmetic mean, summed in float64."""
        return fsum(member.total for member in self.members) / self.size

    def count_above(self, threshold: float) -> int:
        """Number of scores strictly above `threshold`."""
        limit = _float32_at_most(threshold)  # above a double is above the float32 just below it
        return sum(_count_above(chunk, limit) for chunk in self.chunks())

    @cached_property
    def _prefix_counts(self) -> Tensor:
        return torch.stack([member.prefix_counts for member in self.members]).sum(dim=0)

    def kth_smallest(self, k: int) -> float:
        """The k-th smallest score, k from 1 to `size`, exactly."""
        return kth_smallest(self._prefix_counts, self.chunks(), k)

    @property
    def median(self) -> float:
        """The lower median, as torch.median defines it."""
        return self.kth_smallest((self.size + 1) // 2)

    def histogram(self, bins_per_octave: int = 8) -> ScoreHistogram:
        """Log-spaced histogram, at the resolution of the upper bits of float32 (2^-7 of a score).

        Each group of equal upper bits is counted whole in the bin of its midpoint.
        """
        counts = self._prefix_counts
        present = counts.nonzero().flatten()
        n_zero = int(counts[0])  # zeros, and denormals too small to matter
        present = present[present > 0]
        if len(present) == 0:
            return ScoreHistogram(bins_per_octave=bins_per_octave, first_bin=0, counts=(), n_zero=n_zero)
        midpoints = (
            ((present << _PREFIX_BITS) + (1 << (_PREFIX_BITS - 1))).to(torch.int32).view(torch.float32)
        )
        bins = (midpoints.double().log2() * bins_per_octave).floor().long()
        first = int(bins[0])
        binned = torch.zeros(int(bins[-1]) - first + 1, dtype=torch.int64)
        binned.index_add_(0, bins - first, counts[present])
        return ScoreHistogram(
            bins_per_octave=bins_per_octave, first_bin=first, counts=tuple(binned.tolist()), n_zero=n_zero
        )


def kth_smallest(prefix_counts: Tensor, chunks: Iterable[Tensor], k: int) -> float:
    """The k-th smallest score, k from 1, exactly: a radix selection in two looks at all of them.

    Args:
        prefix_counts: what the first look finds, see `ScoredWeight.prefix_counts`.
        chunks: all scores again, for the second.
        k: which one.
    """
    cumulative = prefix_counts.cumsum(0)
    prefix = int(torch.searchsorted(cumulative, k))
    rank = k - (int(cumulative[prefix - 1]) if prefix else 0)
    suffix_counts = torch.zeros(1 << _PREFIX_BITS, dtype=torch.int64)
    for chunk in chunks:
        inside = _bits_behind(chunk, prefix)
        suffix_counts += torch.bincount(inside, minlength=1 << _PREFIX_BITS).cpu()
    suffix = int(torch.searchsorted(suffix_counts.cumsum(0), rank))
    pattern = torch.tensor((prefix << _PREFIX_BITS) | suffix, dtype=torch.int32)
    return float(pattern.view(torch.float32))


def pooled(pools: Sequence[ScorePool]) -> ScorePool:
    """One population of all scores in `pools`."""
    return ScorePool(tuple(member for pool in pools for member in pool.members))


def _sum(values: Tensor) -> float:
    """Sum in float64, of a converted copy: five times as fast as converting one by one within the sum."""
    return float(values.double().sum())


def _bits(scores: Tensor) -> Tensor:
    return scores.view(torch.int32).flatten()


def _count_above(scores: Tensor, limit: float) -> int:
    """Number of float32 `scores` strictly above `limit`, a float32 itself."""
    if scores.device.type == "cpu":  # numpy compares and counts six times as fast as torch
        return int(np.count_nonzero(scores.numpy() > np.float32(limit)))
    return int(torch.count_nonzero(scores > limit))


def _bits_behind(scores: Tensor, prefix: int) -> Tensor:
    """The lower bits, int32, of those `scores` whose upper bits are `prefix`."""
    bits = _bits(scores)
    if bits.device.type == "cpu":  # numpy selects five times as fast as torch
        patterns = bits.numpy()
        inside = torch.from_numpy(patterns[(patterns >> _PREFIX_BITS) == prefix])
    else:
        inside = bits[(bits >> _PREFIX_BITS) == prefix]
    return inside & ((1 << _PREFIX_BITS) - 1)


def _float32_at_most(value: float) -> float:
    """The largest float32 that is not above `value`."""
    nearest = np.float32(value)
    return float(np.nextafter(nearest, np.float32(-np.inf)) if float(nearest) > value else nearest)
