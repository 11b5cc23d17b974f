"""Whole numbers of heads and channels: the budget is kept, and used up to the last step that fits."""

from collections.abc import Sequence
from dataclasses import replace
from math import fsum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owl_compress.backends.block_widths import (
    AttentionSizes,
    BlockSizes,
    BlockWidths,
    ChannelSizes,
    Level,
    Rounding,
)
from owl_compress.backends.widths import choose_widths
from owl_compress.errors import RequestError


def attention(
    share: float, groups: int, per_group: int, query: int = 2, key_value: int = 2, lost: Sequence[float] = ()
) -> AttentionSizes:
    """Levels of an attention of `groups` key-value heads; by default all that goes is lost."""
    whole = groups * (per_group * query + key_value)
    levels = []
    for kv_heads in range(1, groups + 1):
        for queries in range(1, per_group + 1):
            size = kv_heads * (queries * query + key_value)
            loss = lost[len(levels)] if lost else whole - size
            levels.append(Level(kv_heads, queries, size, loss if size < whole else 0.0))
    return AttentionSizes(share * whole, tuple(levels))


def channels(share: float, n_channels: int, each: int = 3, fixed: int = 0) -> ChannelSizes:
    return ChannelSizes(share * (n_channels * each + fixed), n_channels, each, fixed)


def block(name: str, heads: AttentionSizes | None, mlp: ChannelSizes | None) -> BlockSizes:
    whole = (heads.levels[-1].n_weights if heads else 0) + (mlp.n_weights(mlp.n_channels) if mlp else 0)
    sizes = BlockSizes(name, 0.0, heads, mlp)
    return replace(sizes, value=sizes.budget / whole)


@st.composite
def models(draw: st.DrawFn) -> list[BlockSizes]:
    blocks = []
    for index in range(draw(st.integers(1, 5))):
        heads = mlp = None
        kind = draw(st.sampled_from(["both", "both", "heads", "channels"]))
        shares = st.floats(0, 1)
        if kind != "channels":
            groups, per_group = draw(st.integers(1, 4)), draw(st.integers(1, 4))
            lost = draw(st.lists(st.floats(0, 10), min_size=16, max_size=16))
            sizes = draw(st.integers(1, 20)), draw(st.integers(1, 20))
            heads = attention(draw(shares), groups, per_group, *sizes, lost=lost)
        if kind != "heads":
            mlp = channels(
                draw(shares), draw(st.integers(16, 60)), draw(st.integers(1, 9)), draw(st.integers(0, 5))
            )
        blocks.append(block(f"block.{index}", heads, mlp))
    return blocks


def size(sizes: BlockSizes, widths: BlockWidths) -> int:
    heads = widths.level.n_weights if widths.level else 0
    mlp = (
        sizes.mlp.n_weights_each * widths.channels + sizes.mlp.n_weights_fixed
        if sizes.mlp and widths.channels
        else 0
    )
    return heads + mlp


def steps(sizes: BlockSizes, widths: BlockWidths, round_to: int) -> list[int]:
    """Weights of every single step up that is still there; what went whole stays away."""
    found = []
    if sizes.attention and widths.level and widths.level.kv_heads:
        bigger = (level.n_weights - widths.level.n_weights for level in sizes.attention.levels)
        found += [step for step in bigger if step > 0]
    if sizes.mlp and widths.channels and widths.channels < sizes.mlp.n_channels:
        bigger_count = min((widths.channels // round_to + 1) * round_to, sizes.mlp.n_channels)
        found.append((bigger_count - widths.channels) * sizes.mlp.n_weights_each)
    return found


def least(sizes: BlockSizes, round_to: int) -> int:
    heads = min((level.n_weights for level in sizes.attention.levels), default=0) if sizes.attention else 0
    return heads + (sizes.mlp.n_weights(min(round_to, sizes.mlp.n_channels)) if sizes.mlp else 0)


@settings(max_examples=150)
@given(blocks=models(), round_to=st.integers(1, 16), allow_empty=st.booleans())
def test_never_above_the_budget_and_short_by_less_than_a_step(
    blocks: list[BlockSizes], round_to: int, allow_empty: bool
) -> None:
    budget = fsum(sizes.budget for sizes in blocks)
    rounding = Rounding(round_to, allow_empty)
    try:
        chosen = choose_widths(blocks, rounding)
    except RequestError:
        assert sum(least(sizes, round_to) for sizes in blocks) > budget * (1 - 1e-9)
        return
    total = sum(map(size, blocks, chosen))
    assert total <= budget * (1 + 1e-9)
    for sizes, widths in zip(blocks, chosen, strict=True):
        assert all(total + step > budget * (1 - 1e-9) for step in steps(sizes, widths, round_to))
        if sizes.mlp:
            n_channels = sizes.mlp.n_channels
            assert widths.channels is not None
            assert widths.channels % round_to == 0 or widths.channels == n_channels
            assert 0 <= widths.channels <= n_channels
            assert widths.channels or allow_empty
        if sizes.attention:
            assert widths.level is not None
            assert widths.level in sizes.attention.levels or (allow_empty and widths.level.n_weights == 0)
        assert (widths.channels is None, widths.level is None) == (sizes.mlp is None, sizes.attention is None)
    assert choose_widths(blocks, rounding) == chosen


@settings(max_examples=80)
@given(blocks=models(), round_to=st.integers(1, 16))
def test_what_is_nearly_nothing_goes_whole_and_nothing_else(blocks: list[BlockSizes], round_to: int) -> None:
    try:
        chosen = choose_widths(blocks, Rounding(round_to, allow_empty=True))
    except RequestError:
        return
    for sizes, widths in zip(blocks, chosen, strict=True):
        if sizes.mlp:
            one_step = sizes.mlp.n_weights(min(round_to, sizes.mlp.n_channels))
            assert (widths.channels == 0) == (2 * sizes.mlp.asked < one_step)
        if sizes.attention and widths.level:
            one_head = min(level.n_weights for level in sizes.attention.levels)
            assert (widths.level.n_weights == 0) == (2 * sizes.attention.asked < one_head)


@settings(max_examples=80)
@given(
    shares=st.lists(st.floats(0.1, 1), min_size=1, max_size=6),
    n_channels=st.integers(20, 200),
    each=st.integers(1, 50),
)
def test_single_channels_meet_the_budget_to_the_channel(
    shares: list[float], n_channels: int, each: int
) -> None:
    blocks = [block(str(i), None, channels(share, n_channels, each)) for i, share in enumerate(shares)]
    chosen = choose_widths(blocks, Rounding(1))
    missing = fsum(sizes.budget for sizes in blocks) - sum(map(size, blocks, chosen))
    assert -1e-6 < missing < each
    for share, widths in zip(shares, chosen, strict=True):
        assert widths.channels is not None
        assert abs(widths.channels - share * n_channels) < 1 + 1e-6  # no block pays for another


def smol(share: float, lost: dict[tuple[int, int], float]) -> AttentionSizes:
    """Nine query heads that read three key-value heads."""
    order = [(kv, per) for kv in (1, 2, 3) for per in (1, 2, 3)]
    return attention(share, 3, 3, lost=[lost.get(key, 100.0) for key in order])


@pytest.mark.parametrize(("cheap", "dear"), [((3, 1), (2, 2)), ((2, 2), (3, 1))])
def test_of_levels_of_one_size_the_one_that_loses_less(cheap: tuple[int, int], dear: tuple[int, int]) -> None:
    for mlp in (None, channels(0.5, 64)):
        (widths,) = choose_widths([block("b", smol(0.5, {cheap: 1.0, dear: 2.0}), mlp)], Rounding(1))
        assert widths.level is not None
        assert (widths.level.kv_heads, widths.level.queries_per_group) == cheap


def test_nearly_as_near_counts_as_near_where_the_rest_can_make_up_for_it() -> None:
    heads = attention(0.6, 8, 4, 1, 1, lost=[9.0] * 31 + [0.0])  # 24 of 40: (8, 2), (6, 3); 25: (5, 4)
    cheap = Level(5, 4, 25, 1.0)
    levels = tuple(cheap if (it.kv_heads, it.queries_per_group) == (5, 4) else it for it in heads.levels)
    sizes = block("b", replace(heads, levels=levels), channels(0.605, 100))
    (widths,) = choose_widths([sizes], Rounding(1))
    assert widths.level == cheap
    assert 25 + 3 * (widths.channels or 0) <= 24 + 0.605 * 300 < 25 + 3 * ((widths.channels or 0) + 1)
    (alone,) = choose_widths([replace(sizes, mlp=None)], Rounding(1))
    assert alone.level is not None
    assert alone.level.n_weights == 24  # without a feed-forward nothing above the share


def test_whole_units_stated_for_both_parts_are_what_is_carried_out() -> None:
    heads = attention(0.6, 8, 4, 1, 1, lost=[1.0] * 31 + [0.0])  # 24 of 40, and others near by
    (widths,) = choose_widths([block("b", heads, channels(0.6, 100))], Rounding(1))
    assert widths.level is not None
    assert (widths.level.n_weights, widths.channels) == (24, 60)


def test_what_is_asked_whole_stays_whole() -> None:
    (first,) = choose_widths([block("a", smol(0.55, {}), channels(1.0, 64))], Rounding(8))
    assert first.channels == 64
    assert first.level is not None
    assert first.level.n_weights == 12  # of 13.2
    heads = smol(1.0, {})
    (second,) = choose_widths([block("b", heads, channels(0.55, 64))], Rounding(8))
    assert second == BlockWidths(heads.levels[-1], 32)


def test_what_is_left_over_goes_to_the_highest_share_first() -> None:
    sizes = [block(str(i), None, channels(share, 100, 1)) for i, share in enumerate([0.47, 0.48, 0.49, 0.46])]
    # Floored to 40 each, 30 are left of 190: one step of ten for each of the three highest.
    assert [widths.channels for widths in choose_widths(sizes, Rounding(10))] == [50, 50, 50, 40]


def test_among_equals_the_one_left_furthest_below_and_then_the_first() -> None:
    parts = [(0.5, 100), (0.5, 90), (0.5, 70)]  # floored to 50, 40 and 30: 0, 5 and 5 are missing
    sizes = [block(str(i), None, channels(share, width, 1)) for i, (share, width) in enumerate(parts)]
    assert [widths.channels for widths in choose_widths(sizes, Rounding(10))] == [50, 50, 30]


def test_a_block_below_its_least_is_paid_for_by_the_lowest_share() -> None:
    sizes = [block(str(i), None, channels(share, 100, 1)) for i, share in enumerate([0.9, 0.02, 0.5, 0.4])]
    # 90, 10 (the least), 50 and 40 are 190 of 182.
    assert [widths.channels for widths in choose_widths(sizes, Rounding(10))] == [90, 10, 50, 30]


def test_a_width_that_is_no_multiple_may_stay() -> None:
    assert choose_widths([block("b", None, channels(1.0, 100))], Rounding(64))[0].channels == 100
    assert choose_widths([block("b", None, channels(0.99, 100))], Rounding(64))[0].channels == 64


def test_alike_for_every_block() -> None:
    sizes = [block(str(i), smol(share, {}), channels(share, 64)) for i, share in enumerate([0.3, 0.9, 0.6])]
    first, *others = choose_widths(sizes, Rounding(8, uniform=True))
    assert others == [first, first]
    budget, total = fsum(it.budget for it in sizes), 3 * size(sizes[0], first)
    assert total <= budget
    assert all(total + 3 * step > budget for step in steps(sizes[0], first, 8))


def test_alike_the_importance_of_all_blocks_decides() -> None:
    one, other = (3, 1), (2, 2)
    sizes = [block("a", smol(0.5, {one: 1, other: 9}), None)] + [
        block(name, smol(0.5, {one: 8, other: 2}), None) for name in "bc"
    ]
    level = choose_widths(sizes, Rounding(1, uniform=True))[0].level
    assert level is not None
    assert (level.kv_heads, level.queries_per_group) == other


@pytest.mark.parametrize(
    ("sizes", "rounding", "message"),
    [
        (
            [block("b.0", None, channels(0.5, 48))],
            Rounding(64),
            "--round-to 64 is more than the 48 channels of b.0: give at most that",
        ),
        (
            [block("b.0", smol(0.1, {}), channels(0.1, 96, 4))],  # 40.8 of 408; the least is 4 + 4 * 64
            Rounding(64),
            "the ratio 0.902 cannot be met with the rounding, --round-to 64: one query head and 64 channels "
            "stay in every block; ask for at most 0.362, or give --round-to 9 or less, or give --allow-empty",
        ),
        (
            [block("b.0", smol(0.1, {}), None)],  # 2.4 of 24; the least is 4
            Rounding(64),
            "query head and 64 channels stay in every block; ask for at most 0.833",
        ),
        (
            [block("b.0", None, channels(0.5, 64)), block("b.1", None, channels(0.5, 32))],
            Rounding(8, uniform=True),
            "--uniform-width needs blocks of one shape, and b.1 differs from b.0",
        ),
    ],
)
def test_what_cannot_be_met_says_what_can(sizes: list[BlockSizes], rounding: Rounding, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        choose_widths(sizes, rounding)
    assert message in str(caught.value)
    assert ("--allow-empty" in str(caught.value)) == ("--allow-empty" in message)
