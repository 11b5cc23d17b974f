"""The next block is read while one is worked on: nothing else is different, and no reader is left behind."""

import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from owl_compress.checkpoints.loading import load_model
from owl_compress.checkpoints.streaming import StreamedBlock
from owl_compress.checkpoints.tensors import tensor_files
from owl_compress.data.windows import TokenWindows
from owl_compress.errors import RequestError
from owl_compress.models.residence import Bring, fetch
from owl_compress.models.structure import find_structure
from owl_compress.walk.ahead import reading_ahead
from owl_compress.walk.blocks import BlockWalk

CPU, META = torch.device("cpu"), torch.device("meta")
Make = Callable[..., TokenWindows]


def walk_from_disk(windows: TokenWindows) -> BlockWalk:
    model = load_model("model", offload="disk").model
    return BlockWalk(model, find_structure(model), windows.batches(1), device=CPU)


def readers() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("owl-compress-reader")]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> dict[str, threading.Event]:
    """Told of each block of the model once it was read in the background."""
    events = {f"model.layers.{index}": threading.Event() for index in range(3)}
    original = StreamedBlock.fetch

    def watched(block: StreamedBlock, bring: Bring) -> dict[str, Tensor]:
        found = original(block, bring)
        if threading.current_thread() is not threading.main_thread():
            events[block.name].set()
        return found

    monkeypatch.setattr(StreamedBlock, "fetch", watched)
    return events


def test_the_next_block_is_read_while_one_is_worked_on(
    here: Path, make_windows: Make, read: dict[str, threading.Event]
) -> None:
    with closing(walk_from_disk(make_windows(2)).visits()) as visits:
        first = next(visits)
        assert read["model.layers.1"].wait(timeout=300)
        assert all(one.is_meta for one in find_structure(first._walk._model).blocks[1].module.parameters())
        assert not read["model.layers.2"].is_set()
        next(visits)
        assert read["model.layers.2"].wait(timeout=300)
        assert all(one.is_meta for one in first.site.module.parameters())


def test_no_reader_is_left_when_a_walk_ends_or_is_left_early(here: Path, make_windows: Make) -> None:
    walk = walk_from_disk(make_windows(2))
    for visit in walk.visits():
        assert len(readers()) <= 1, visit.site.name
    assert not readers()
    with closing(walk_from_disk(make_windows(2)).visits()) as visits:
        next(visits)
    assert not readers()


def test_what_cannot_be_read_is_told_at_the_turn_of_its_block(here: Path, make_windows: Make) -> None:
    visited = []
    walk = walk_from_disk(make_windows(2))
    (file,) = set(tensor_files(Path("model")).values())

    def visit_until_it_is_gone() -> None:
        with closing(walk.visits()) as visits:
            for visit in visits:
                visited.append(visit.site.name)
                if len(visited) == 1:
                    file.rename("elsewhere")

    with pytest.raises(RequestError, match=file.name):
        visit_until_it_is_gone()
    assert visited[0] == "model.layers.0"
    assert "model.layers.2" not in visited
    assert not readers()


def test_a_broken_weight_that_was_read_ahead_is_named(
    here: Path, make_windows: Make, tiny_llama: Any
) -> None:
    with torch.no_grad():
        tiny_llama.model.layers[2].mlp.up_proj.weight[0, 0] = float("inf")
    tiny_llama.save_pretrained("model")
    with pytest.raises(RequestError, match=r"model\.layers\.2\.mlp\.up_proj\.weight holds NaN or Inf"):
        list(walk_from_disk(make_windows(1)).visits())
    assert not readers()


def test_blocks_of_the_host_are_brought_to_a_device() -> None:
    blocks = [nn.Linear(3, 2), nn.Linear(3, 2)]
    with reading_ahead(blocks, META) as ahead:
        ahead.start(1)
        brought = ahead.take(1)
        assert brought is not None
        assert {name: (one.shape, one.device) for name, one in brought.items()} == {
            "weight": ((2, 3), META),
            "bias": ((2,), META),
        }
        assert ahead.take(0) is None
        ahead.start(2)
    with reading_ahead(blocks, CPU) as ahead:  # they are there already
        ahead.start(1)
        assert ahead.take(1) is None


def test_a_block_whose_weights_another_may_change_is_not_brought_ahead() -> None:
    blocks = [nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)]
    blocks[1].weight = blocks[0].weight
    with reading_ahead(blocks, META) as ahead:
        for index in (1, 2):
            ahead.start(index)
        assert ahead.take(1) is None
        assert ahead.take(2) is not None


def test_what_is_fetched_is_a_copy() -> None:
    block = nn.Linear(3, 2)
    before = block.weight.detach().clone()
    fetch(block, torch.Tensor.clone)["weight"].zero_()
    assert torch.equal(block.weight, before)
