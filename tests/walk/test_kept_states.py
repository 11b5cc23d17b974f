"""Hidden states kept for a walk to go on from: when they are written, and what is not taken for them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from owl_compress.documents.notes import KeptError
from owl_compress.walk.kept_states import KeptStates
from owl_compress.walk.states import InFile, InMemory, Keeper


def standing(*hidden: Tensor, keeper: Keeper | None = None) -> Any:
    """What is seen of a walk: the states that it is at, and who keeps them."""
    keeper = keeper or InMemory(torch.device("cpu"))
    return SimpleNamespace(hidden=[keeper.keep(one) for one in hidden], keeper=keeper)


def test_they_are_written_only_while_that_takes_little_of_the_time(tmp_path: Path) -> None:
    seconds = iter([0.0, 1.0, 3.0, 4.0, 30.0, 31.0])
    states, walk = KeptStates(tmp_path / "kept", clock=lambda: next(seconds)), standing(torch.zeros(1, 2))
    assert states.put_back_(walk) == 0  # at 0
    states.keep(walk, 1)  # from 1 to 3
    states.keep(walk, 2)  # at 4: two seconds are more than a tenth of one
    assert KeptStates(tmp_path / "kept").put_back_(walk) == 1
    states.keep(walk, 3)  # at 30
    assert KeptStates(tmp_path / "kept").put_back_(walk) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_come_back_to_the_bit_wherever_they_wait(tmp_path: Path, dtype: torch.dtype) -> None:
    given = [torch.randn(2, 3, 4).to(dtype), torch.randn(1, 3, 4).to(dtype)]
    states = KeptStates(tmp_path)
    walk = standing(*given, keeper=InFile(36, dtype))
    states.put_back_(walk)
    states.keep(walk, 5)
    for keeper in (InMemory(torch.device("cpu")), InFile(36, dtype)):
        other = standing(*(torch.zeros_like(one) for one in given), keeper=keeper)
        assert KeptStates(tmp_path).put_back_(other) == 5
        assert all(torch.equal(one, two) for one, two in zip(other.hidden, given, strict=True))


def test_those_of_another_walk_or_broken_ones_are_refused(tmp_path: Path) -> None:
    states, walk = KeptStates(tmp_path), standing(torch.zeros(1, 2))
    states.put_back_(walk)
    states.keep(walk, 1)
    with pytest.raises(KeptError, match=r"states\.safetensors is of another walk: remove it, and the blocks"):
        KeptStates(tmp_path).put_back_(standing(torch.zeros(2, 2)))
    file = tmp_path / "states.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(KeptError, match=r"states\.safetensors is not whole"):
        KeptStates(tmp_path).put_back_(walk)


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    states, walk = KeptStates(None), standing(torch.zeros(1, 2))
    assert states.put_back_(walk) == 0
    states.keep(walk, 1)
    assert list(tmp_path.iterdir()) == []
