"""Compressed copies of blocks: the same as if compressed whole, of pieces that are compressed once each."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from owl_compress.backends import BACKENDS
from owl_compress.compression.block_trials import BlockTrials
from owl_compress.compression.demands import solves_apart
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.units import BitsGrid, Grid, KeptOfGrid
from owl_compress.importance.reference import DenseReference
from owl_compress.models.structure import find_structure
from owl_compress.refinement.block_copies import BlockCopies, _put_together
from owl_compress.refinement.spending import Spending
from owl_compress.refinement.workshop import WorkOptions, Workshop

_BITS = BitsGrid(bits=(2, 3, 4))
# By backend: its options, two levels, and the grid.
CASES: dict[str, tuple[dict[str, Any], tuple[float, float], Grid | None]] = {
    "magnitude": ({}, (0.3, 0.6), None),
    "wanda": ({}, (0.25, 0.5), KeptOfGrid(kept_of=8)),
    "sparsegpt": ({}, (0.3, 0.6), None),
    "rtn": ({"group_size": 8}, (2.0, 4.0), _BITS),
    "gptq": ({"group_size": 8}, (2.0, 4.0), _BITS),
    "structured": ({"round_to": 8}, (0.5, 1.0), None),
}


@pytest.fixture(params=CASES)
def copies(
    request: pytest.FixtureRequest,
    make_model: Callable[[str], Any],
    make_windows: Callable[..., TokenWindows],
) -> BlockCopies:
    options, _, grid = CASES[request.param]
    model, device = make_model("llama"), torch.device("cpu")
    structure = find_structure(model)
    judge = DenseReference.of(model, structure, make_windows(2, 16, seed=2), device)
    backend, seen = BACKENDS.create(request.param, options), make_windows(2, 24, seed=1)
    workshop = Workshop(model, structure, backend, seen, judge, WorkOptions(), device, Spending())
    return BlockCopies.of(workshop, frozenset(structure.linear_sizes), grid)


def budgets_of(trials: BlockTrials, attention: float, mlp: float) -> dict[str, float]:
    names = [linear.name for linear in trials.site.linears]
    return dict(trials.settled({name: attention if "attn" in name else mlp for name in names}))


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_block_is_as_if_compressed_whole(copies: BlockCopies) -> None:
    low, high = CASES[next(iter(copies.trials.values())).backend.name][1]
    for name, trials in copies.trials.items():
        dense = {key: value.clone() for key, value in trials.site.module.state_dict().items()}
        for levels in ((low, high), (high, low), (low, low)):
            budgets = budgets_of(trials, *levels)
            assert same(copies.module(name, budgets), trials.compressed(budgets).site.module)
        assert all(torch.equal(value, dense[key]) for key, value in trials.site.module.state_dict().items())


def test_each_piece_is_compressed_once(copies: BlockCopies, monkeypatch: pytest.MonkeyPatch) -> None:
    (name, trials), *_ = copies.trials.items()
    low, high = CASES[trials.backend.name][1]
    compressed: list[tuple[str, float]] = []
    original = BlockTrials.compressed

    def noted(self: BlockTrials, budgets: dict[str, float]) -> Any:
        compressed.extend(budgets.items())
        return original(self, budgets)

    monkeypatch.setattr(BlockTrials, "compressed", noted)
    for attention in (low, high):
        for mlp in (low, high):
            budgets = budgets_of(trials, attention, mlp)
            for _ in range(2):
                copies.module(name, budgets)
    if solves_apart(trials.backend):
        assert len(compressed) == 2 * len(trials.site.linears), "each linear at each of its two levels"
        assert len(set(compressed)) == len(compressed)
    else:
        assert len(compressed) == 4 * len(trials.site.linears), "each pair of levels of the block"


def test_a_weight_that_two_linears_share_is_compressed_in_both() -> None:
    linear, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight = linear.weight
    compressed = nn.Linear(4, 4)
    made = _put_together(nn.Sequential(linear, other), {"0": compressed})
    assert made[0] is compressed
    assert made[1].weight is compressed.weight
    assert made[1].bias is other.bias


def test_pieces_are_forgotten_when_there_are_many(copies: BlockCopies) -> None:
    copies.limit = 1
    low, high = CASES[next(iter(copies.trials.values())).backend.name][1]
    for name, trials in copies.trials.items():
        for levels in ((low, high), (high, low)):
            budgets = budgets_of(trials, *levels)
            assert same(copies.module(name, budgets), trials.compressed(budgets).site.module)
    assert len(copies._kept) == 1
