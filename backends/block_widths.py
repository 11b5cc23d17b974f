"""The numbers of heads and channels that one block may have, and the steps between them. Pure numbers."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import fsum

SLACK = 1e-12
"""Relative slack for the rounding of floating-point sums: far less than one weight of any model."""

_ABOUT_EQUAL = 0.05
"""Share of an attention's weights by which levels may be further off than the nearest and still compete."""


@dataclass(frozen=True)
class Level:
    """An attention of `kv_heads` key-value heads, each read by `queries_per_group` query heads.

    `n_weights` is exact; `lost` is the importance of the heads that are gone, in any unit.
    """

    kv_heads: int
    queries_per_group: int
    n_weights: int
    lost: float = 0.0


@dataclass(frozen=True)
class AttentionSizes:
    """What an attention may become. `asked` counts weights; the last of `levels` is the attention whole."""

    asked: float
    levels: tuple[Level, ...]

    @property
    def whole(self) -> Level:
        """The attention as it is."""
        return self.levels[-1]


@dataclass(frozen=True)
class ChannelSizes:
    """A feed-forward of `n_channels` channels of `n_weights_each`, and `n_weights_fixed` beside them."""

    asked: float
    n_channels: int
    n_weights_each: int
    n_weights_fixed: int = 0

    def n_weights(self, channels: int) -> int:
        """Weights of a feed-forward of `channels`; without any it is gone whole."""
        return self.n_weights_fixed + channels * self.n_weights_each if channels else 0


@dataclass(frozen=True)
class BlockSizes:
    """One block: the share that the plan gives it, and the parts that the plan names."""

    name: str
    value: float
    attention: AttentionSizes | None
    mlp: ChannelSizes | None

    @property
    def budget(self) -> float:
        """Weights that the plan gives the block."""
        return fsum(part.asked for part in (self.attention, self.mlp) if part)

    @property
    def shape(self) -> tuple[object, ...]:
        """Equal for blocks that the same numbers of heads and channels fit."""
        levels = self.attention.levels if self.attention else ()
        return self.mlp and replace(self.mlp, asked=0.0), tuple(replace(level, lost=0.0) for level in levels)


@dataclass(frozen=True)
class BlockWidths:
    """What stays of one block; None where the plan names no part."""

    level: Level | None
    channels: int | None


@dataclass(frozen=True)
class Rounding:
    """Channels stay in multiples of `round_to`, or all; a part may go whole only with `allow_empty`.

    With `uniform` every block gets the same numbers.
    """

    round_to: int
    allow_empty: bool = False
    uniform: bool = False


@dataclass
class BlockState:
    """One block on the way to its widths; every change returns the weights that it moved."""

    sizes: BlockSizes
    counts: tuple[int, ...]  # of channels that are allowed, rising
    levels: tuple[Level, ...]  # that are allowed
    level: Level | None
    channels: int | None

    @classmethod
    def nearest(cls, sizes: BlockSizes, rounding: Rounding) -> "BlockState":
        """As near to the block's budget as whole units let it, above it only at the least that may stay."""
        attention, mlp = sizes.attention, sizes.mlp
        counts = _allowed_counts(mlp, rounding) if mlp else ()
        levels = _allowed_levels(attention, rounding) if attention else ()
        level = _choose_level(sizes, levels, counts) if attention else None
        channels = None
        if mlp:
            room = (sizes.budget - (level.n_weights if level else 0)) * (1 + SLACK)
            fitting = [count for count in counts if mlp.n_weights(count) <= room]
            channels = fitting[-1] if fitting else counts[0]
        return cls(sizes, counts, levels, level, channels)

    @property
    def n_weights(self) -> int:
        """Weights that stay."""
        channels = self.sizes.mlp.n_weights(self.channels) if self.sizes.mlp and self.channels else 0
        return channels + (self.level.n_weights if self.level else 0)

    @property
    def whole(self) -> int:
        """Weights of the block as it is."""
        mlp, attention = self.sizes.mlp, self.sizes.attention
        return (mlp.n_weights(mlp.n_channels) if mlp else 0) + (attention.whole.n_weights if attention else 0)

    @property
    def least(self) -> int:
        """Fewest weights that may stay."""
        channels = self.sizes.mlp.n_weights(self.counts[0]) if self.sizes.mlp else 0
        return channels + min((level.n_weights for level in self.levels), default=0)

    def shrink_(self) -> int:
        """One step down, of the feed-forward where it has one left."""
        before = self.n_weights
        if self.channels is not None and self.channels > self.counts[0]:
            self.channels = self.counts[bisect_left(self.counts, self.channels) - 1]
        elif self.level:
            below = [level for level in self.levels if level.n_weights < self.level.n_weights]
            if below:
                most = max(level.n_weights for level in below)
                self.level = _least_lost(level for level in below if level.n_weights == most)
        return before - self.n_weights

    def grow_first_(self, room: int) -> int:
        """One step up of the feed-forward, or of the attention in a block without a feed-forward."""
        if self.sizes.mlp is None:
            return self.grow_attention_(room)
        if not self.channels or self.channels == self.counts[-1]:
            return 0
        higher = self.counts[bisect_right(self.counts, self.channels)]
        step = self.sizes.mlp.n_weights(higher) - self.sizes.mlp.n_weights(self.channels)
        if step > room:
            return 0
        self.channels = higher
        return step

    def grow_attention_(self, room: int) -> int:
        """The smallest step up of the attention."""
        if self.level is None:
            return 0
        above = [level for level in self.levels if level.n_weights > self.level.n_weights]
        if not above:
            return 0
        fewest = min(level.n_weights for level in above)
        step = fewest - self.level.n_weights
        if step > room:
            return 0
        self.level = _least_lost(level for level in above if level.n_weights == fewest)
        return step


def _allowed_counts(mlp: ChannelSizes, rounding: Rounding) -> tuple[int, ...]:
    """Multiples of `round_to` and the whole width; zero alone where so little is asked that it is nearest."""
    whole, step = mlp.n_channels, rounding.round_to
    counts = (*range(step, whole, step), whole)
    is_nothing = mlp.asked < mlp.n_weights(counts[0]) / 2
    return (0,) if rounding.allow_empty and is_nothing else counts


def _allowed_levels(attention: AttentionSizes, rounding: Rounding) -> tuple[Level, ...]:
    """The levels; no heads at all where so little is asked that this is nearest."""
    least = min(level.n_weights for level in attention.levels)
    if rounding.allow_empty and attention.asked < least / 2:
        everything = max(level.lost for level in attention.levels)
        return (Level(0, 0, 0, everything),)
    return attention.levels


def _choose_level(sizes: BlockSizes, levels: tuple[Level, ...], counts: tuple[int, ...]) -> Level:
    attention, mlp = sizes.attention, sizes.mlp
    if attention is None:
        raise TypeError("a block without attention has no level")
    asked, whole = attention.asked, attention.whole
    # A feed-forward that is to stay whole, or to go whole, makes up for nothing.
    is_flexible = mlp is not None and counts[0] > 0 and mlp.asked * (1 + SLACK) < mlp.n_weights(counts[-1])
    if mlp is None or not is_flexible:
        fitting = [level for level in levels if level.n_weights <= asked * (1 + SLACK)]
        most = max((level.n_weights for level in fitting), default=min(level.n_weights for level in levels))
        return _least_lost(level for level in levels if level.n_weights == most)
    room = (sizes.budget - mlp.n_weights(counts[0])) * (1 + SLACK)
    fitting = [level for level in levels if level.n_weights <= room]
    if not fitting:
        fewest = min(level.n_weights for level in levels)
        return _least_lost(level for level in levels if level.n_weights == fewest)
    distance = min(abs(level.n_weights - asked) for level in fitting)
    nearest = [level for level in fitting if abs(level.n_weights - asked) == distance]
    if whole in nearest:
        return whole
    if distance <= SLACK * whole.n_weights and _is_exact(mlp, counts):
        return _least_lost(nearest)  # a plan that states whole units for both parts means these
    near = distance + _ABOUT_EQUAL * whole.n_weights
    about = [level for level in fitting if abs(level.n_weights - asked) <= near]
    partial = [level for level in about if level.n_weights < whole.n_weights]
    return min(partial, key=lambda it: (it.lost / (whole.n_weights - it.n_weights), *_order(it)))


def _is_exact(mlp: ChannelSizes, counts: Iterable[int]) -> bool:
    """Whether what is asked of a feed-forward is one of the counts that it may have."""
    return any(abs(mlp.asked - mlp.n_weights(count)) <= SLACK * mlp.asked for count in counts)


def _least_lost(levels: Iterable[Level]) -> Level:
    return min(levels, key=_order)


def _order(level: Level) -> tuple[float, int, int]:
    """By what is lost; among equals more weights, then more key-value heads."""
    return level.lost, -level.n_weights, -level.kv_heads
