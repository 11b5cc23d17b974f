"""Hidden states wait where there is room; in a file they are the same, and nothing is left of it."""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from owl_compress.data.windows import TokenWindows
from owl_compress.documents.temporary import temporary_name
from owl_compress.errors import RequestError
from owl_compress.models.structure import find_structure
from owl_compress.walk.blocks import BlockWalk
from owl_compress.walk.states import InFile, InMemory, KeepOn, keeper_of, place_of

CPU = torch.device("cpu")
BATCHES = [torch.zeros(2, 5, dtype=torch.long), torch.zeros(1, 5, dtype=torch.long)]
Make = Callable[..., TokenWindows]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def states_of(model: Any, windows: TokenWindows, keep_on: KeepOn) -> list[Tensor]:
    """What each block is handed, batch by batch."""
    walk = BlockWalk(model, find_structure(model), windows.batches(2), device=CPU, keep_on=keep_on)
    with closing(walk.visits()) as visits:
        return [hidden.clone() for _ in visits for hidden in walk.hidden]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_in_a_file_are_the_same_to_the_last_bit(
    tiny_llama: Any, make_windows: Make, temporary: Path, dtype: torch.dtype
) -> None:
    model, windows = tiny_llama.to(dtype), make_windows(5)
    expected, found = (states_of(model, windows, place) for place in ("host", "disk"))
    assert len(found) == len(expected) == 3 * 3
    assert all(map(torch.equal, found, expected))
    assert not list(temporary.iterdir())


def test_a_file_has_no_name_while_it_is_used(tiny_llama: Any, make_windows: Make, temporary: Path) -> None:
    walk = BlockWalk(
        tiny_llama, find_structure(tiny_llama), make_windows(2).batches(1), device=CPU, keep_on="disk"
    )
    with closing(walk.visits()) as visits:
        next(visits)
        assert isinstance(walk.keeper, InFile)
        assert not list(temporary.iterdir())
    assert walk.hidden == []
    assert isinstance(walk.keeper, InMemory)


def test_a_file_that_a_dead_process_left_is_removed(temporary: Path) -> None:
    left, of_another = temporary / temporary_name("owl-compress-states"), temporary / "else"
    dead = left.with_name(left.name.replace(f"-{os.getpid()}.", "-999999999."))
    for path in (dead, of_another):
        path.write_bytes(b"states")
    InFile(10, torch.float32)
    assert list(temporary.iterdir()) == [of_another]


def test_a_disk_without_room_is_refused_with_what_helps(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=39))
    with pytest.raises(RequestError, match=r"states take 40 bytes, .* has 39 free: set TMPDIR to a folder"):
        InFile(10, torch.float32)
    assert not list(temporary.iterdir())


def test_a_disk_that_is_full_after_all_is_told_in_one_line(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(RequestError, match="disk full"):
        InFile(10, torch.float32)
    assert not list(temporary.iterdir())


def test_a_system_that_sets_nothing_aside_has_zeros_written(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.posix_fallocate", raising=False)
    states = torch.randn(3, 5, 7)
    assert torch.equal(InFile(states.numel(), states.dtype).keep(states), states)


@pytest.mark.parametrize(
    ("n_bytes", "asked", "on_device", "on_host", "place"),
    [
        (100, "auto", 100, 0, "device"),
        (101, "auto", 100, 101, "host"),
        (102, "auto", 100, 101, "disk"),
        (102, "auto", 100, None, "host"),
        (102, "auto", None, 0, "device"),
        (1, "disk", 100, 100, "disk"),
        (102, "device", 100, 101, "device"),
        (102, "host", 100, 101, "host"),
    ],
)
def test_they_wait_at_the_first_place_with_room_or_where_they_are_asked_to(
    n_bytes: int, asked: Any, on_device: int | None, on_host: int | None, place: str
) -> None:
    assert place_of(n_bytes, asked, on_device, on_host) == place


def test_auto_takes_a_file_only_where_it_may_and_memory_is_short(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = torch.zeros(2, 5, 8)
    n_bytes = 3 * 5 * 8 * 4
    for free, kind in ((0, InMemory), (2 * n_bytes, InMemory), (2 * n_bytes - 2, InFile)):
        monkeypatch.setattr("owl_compress.walk.states.free_host_bytes", lambda free=free: free)
        assert isinstance(keeper_of("auto", BATCHES, first, CPU), kind)
        assert isinstance(keeper_of(None, BATCHES, first, CPU), InMemory)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes pages of a file out when asked")
def test_states_in_a_file_take_no_memory_meanwhile(temporary: Path) -> None:
    n_batches, states = 16, torch.ones(4, 256, 1024)  # 4 MiB each
    keeper = InFile(n_batches * states.numel(), states.dtype)
    before = resident_bytes()
    kept = [keeper.keep(states) for _ in range(n_batches)]
    assert resident_bytes() - before > (n_batches - 2) * 4 * 2**20
    for one in kept:
        keeper.let_go(one)
    assert resident_bytes() - before < 2 * 4 * 2**20
    assert all(bool((one == 1).all()) for one in kept)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
