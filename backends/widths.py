"""From shares to whole numbers of heads and channels: never above the budget, short by less than one step.

Pure numbers. Every block first comes as near to its own budget as whole units let it without exceeding it;
what is left over in the model is then given out in single steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import floor, fsum

from owl_compress.backends.block_widths import (
    SLACK,
    AttentionSizes,
    BlockSizes,
    BlockState,
    BlockWidths,
    Rounding,
)
from owl_compress.errors import RequestError


def choose_widths(blocks: Sequence[BlockSizes], rounding: Rounding) -> tuple[BlockWidths, ...]:
    """Whole numbers for every block, in the order of `blocks`.

    Attention comes first: the level nearest to its share, among about equally near ones the one that loses
    the least importance for each weight it frees. The feed-forward then gets the largest count with which its
    block stays within its own budget. Where a block's least exceeds its budget, steps are taken from the
    blocks with the lowest share; what is left over goes to those with the highest.

    Raises:
        RequestError: `round_to` above the number of channels, the least of all blocks exceeds the budget, or
            `uniform` on blocks of different shapes.
    """
    for block in blocks:
        if block.mlp and rounding.round_to > block.mlp.n_channels:
            raise RequestError(
                f"--round-to {rounding.round_to} is more than the {block.mlp.n_channels} channels of "
                f"{block.name}: give at most that"
            )
    if rounding.uniform:
        (same,) = _solve([_merged(blocks)], rounding)
        return (same,) * len(blocks)
    return _solve(blocks, rounding)


def _merged(blocks: Sequence[BlockSizes]) -> BlockSizes:
    """One block that stands for all: the mean of what is asked, the sum of what would be lost."""
    first = blocks[0]
    for block in blocks:
        if block.shape != first.shape:
            raise RequestError(
                f"--uniform-width needs blocks of one shape, and {block.name} differs from {first.name} in "
                "its sizes or in what the plan skips: drop --uniform-width"
            )
    attention, mlp, n_blocks = first.attention, first.mlp, len(blocks)
    if attention:
        every = [block.attention.levels for block in blocks if block.attention]
        attention = AttentionSizes(
            fsum(block.attention.asked for block in blocks if block.attention) / n_blocks,
            tuple(replace(of[0], lost=fsum(level.lost for level in of)) for of in zip(*every, strict=True)),
        )
    if mlp:
        mlp = replace(mlp, asked=fsum(block.mlp.asked for block in blocks if block.mlp) / n_blocks)
    return BlockSizes("every block", fsum(block.value for block in blocks) / n_blocks, attention, mlp)


def _solve(blocks: Sequence[BlockSizes], rounding: Rounding) -> tuple[BlockWidths, ...]:
    budget = floor(fsum(block.budget for block in blocks) * (1 + SLACK))
    states = [BlockState.nearest(block, rounding) for block in blocks]
    least = sum(state.least for state in states)
    if least > budget:
        raise RequestError(_cannot_be_met(states, budget, rounding))
    # Highest share first, then the one that its rounding left furthest below its budget; the sort is stable.
    ranked = sorted(states, key=lambda state: (-state.sizes.value, state.n_weights - state.sizes.budget))
    _take_(ranked[::-1], sum(state.n_weights for state in states) - budget)
    _give_(ranked, budget - sum(state.n_weights for state in states))
    return tuple(BlockWidths(state.level, state.channels) for state in states)


def _take_(blocks: Sequence[BlockState], excess: int) -> None:
    """Take single steps away, one from each block in turn, until `excess` weights are gone."""
    while excess > 0:
        before = excess
        for block in blocks:
            if excess > 0:
                excess -= block.shrink_()
        if excess == before:
            raise ArithmeticError("no step down is left although the least fits the budget")


def _give_(blocks: Sequence[BlockState], room: int) -> None:
    """Give out single steps, one to each block in turn, as long as one fits `room`.

    Attention grows only where its block has no feed-forward to grow, and where no feed-forward fits any more.
    """
    grows: list[Callable[[BlockState, int], int]] = [BlockState.grow_first_, BlockState.grow_attention_]
    while True:
        before = room
        for grow in grows:
            for block in blocks:
                room -= grow(block, room)
            if room != before:
                break
        if room == before:
            return


def _cannot_be_met(blocks: Sequence[BlockState], budget: int, rounding: Rounding) -> str:
    """The refusal, with what could be met."""
    heads = sum(min((level.n_weights for level in block.levels), default=0) for block in blocks)
    mlps = [block.sizes.mlp for block in blocks if block.sizes.mlp and block.counts[0]]
    whole = sum(block.whole for block in blocks)
    least = sum(block.least for block in blocks)
    reachable = floor(1000 * (1 - least / whole)) / 1000
    remedies = [f"ask for at most {reachable}"] if reachable > 0 else []
    fixed = sum(mlp.n_weights_fixed for mlp in mlps)
    each = sum(mlp.n_weights_each for mlp in mlps)
    finest = (budget - heads - fixed) // each if each else 0
    if finest >= 1:
        remedies.append(f"give --round-to {finest} or less")
    emptied = [BlockState.nearest(block.sizes, replace(rounding, allow_empty=True)) for block in blocks]
    if sum(block.least for block in emptied) <= budget:
        remedies.append("give --allow-empty")
    remedies = remedies or ["use a backend that removes single weights, such as wanda"]
    asked = 1 - budget / whole
    head = "one query head and " if any(block.levels for block in blocks) else ""
    return (
        f"the ratio {asked:.3f} cannot be met with the rounding, --round-to {rounding.round_to}: "
        f"{head}{rounding.round_to} channels stay in every block; {', or '.join(remedies)}"
    )
