"""What gradients need, against sums done by hand and tensors counted; and what is made of the answer."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from owl_compress.backends.structured import Structured
from owl_compress.backends.wanda import Wanda
from owl_compress.compression import gradient_memory
from owl_compress.compression.gradient_memory import (
    GradientSizes,
    MemoryBytes,
    holds,
    memory_for_gradients,
    settled_backend,
)
from owl_compress.device import free_device_bytes
from owl_compress.memory import free_host_bytes
from owl_compress.models.structure import find_structure
from owl_compress.walk.gradients import measure_salience

HOST = torch.device("cpu")
MIB = 2**20

# A block like Llama-7B's in bfloat16, ten windows of 64 tokens, two at a time.
LLAMA_7B = GradientSizes(
    n_blocks=32,
    n_block_parameters=202_383_360,  # 4 * 4096^2 + 3 * 4096 * 11008 + 2 * 4096
    n_weights=202_375_168,
    n_weights_largest=45_088_768,
    n_features=78_080,  # 4 * (4096 + 4096) + 3 * (4096 + 11008)
    hidden=4096,
    vocabulary=32_000,
    n_tokens=640,
    batch_tokens=128,
    n_scores=0,
    element_size=2,
)


def test_one_block_of_a_large_model_by_hand() -> None:
    gradients, product = 809_500_672, 360_710_144  # 4 bytes of each weight, 8 of each of the largest
    graph = 39_976_960  # 2 * 128 tokens * 78080 * 2 bytes
    tail = 65_536_000  # 128 tokens * 32000 * (2 + 2 + 4 + 4 + 4)
    inputs, sums = 178_257_920, 39_976_960  # 34 * 640 * 4096 * 2 bytes; 32 * 78080 * 2 * 8
    weights = 404_766_720
    at_work, kept = gradients + product + graph, inputs + sums
    for on_device, model_on_device, expected in (
        (True, True, MemoryBytes(at_work, kept)),
        (True, False, MemoryBytes(weights + at_work, kept + tail)),
        (False, False, MemoryBytes(0, kept + at_work)),
    ):
        found = memory_for_gradients(LLAMA_7B, on_device=on_device, model_on_device=model_on_device)
        assert found == expected


def test_the_tail_counts_where_it_is_larger_than_a_block() -> None:
    sizes = replace(LLAMA_7B, vocabulary=1_000_000)
    found = memory_for_gradients(sizes, on_device=True, model_on_device=True)
    assert found.device == 128 * 1_000_000 * 16
    assert (
        memory_for_gradients(sizes, on_device=False, model_on_device=False).host - 128 * 1_000_000 * 16
        == found.host
    )


def test_scores_that_attention_keeps_are_added_in_float32() -> None:
    without, kept = (
        memory_for_gradients(replace(LLAMA_7B, n_scores=n), on_device=True, model_on_device=True).device
        for n in (0, 1000)
    )
    assert kept - without == 12_000


@pytest.mark.parametrize(
    ("device", "host", "expected"), [(80, 800, True), (81, 800, False), (80, 801, False), (0, 0, True)]
)
def test_four_fifths_of_what_is_free_may_be_taken(device: int, host: int, expected: bool) -> None:
    assert holds(MemoryBytes(100, 1000), MemoryBytes(device, host)) is expected


@pytest.fixture
def bench() -> Iterator[Any]:
    """The benchmark of memory, for its count of tensors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        yield importlib.import_module("structured_memory")


@pytest.mark.parametrize(
    ("n_blocks", "hidden", "sequences", "seq_len", "batch_size"),
    [(2, 128, 2, 32, 1), (8, 64, 8, 128, 1), (2, 64, 8, 256, 4), (3, 256, 2, 16, 2)],
)
def test_the_estimate_is_above_what_tensors_take_and_not_far_above(
    bench: Any,
    monkeypatch: pytest.MonkeyPatch,
    n_blocks: int,
    hidden: int,
    sequences: int,
    seq_len: int,
    batch_size: int,
) -> None:
    model, windows = bench.random_llama(n_blocks, hidden), bench.random_windows(sequences, seq_len)
    with bench.TensorCount(model) as count:
        measure_salience(model, find_structure(model), windows, batch_size=batch_size)
    needed = needs(monkeypatch, model, windows, batch_size)
    assert count.peak_bytes <= needed.host <= 2.2 * count.peak_bytes


def needs(monkeypatch: pytest.MonkeyPatch, model: Any, windows: Any, batch_size: int) -> MemoryBytes:
    """What is found to be needed when the backend is settled."""
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(gradient_memory, "holds", lambda _free, needed: asked.append(needed) or True)
        settle(model, Structured(importance="auto"), windows, batch_size)
    (needed,) = asked
    return needed


def settle(model: Any, backend: Any, windows: Any, batch_size: int = 1) -> tuple[Any, tuple[str, ...]]:
    return settled_backend(backend, model, find_structure(model), windows, batch_size, HOST)


@pytest.mark.parametrize(("share", "importance"), [(1.01, "taylor"), (0.99, "wanda")])
def test_memory_decides(
    monkeypatch: pytest.MonkeyPatch,
    family_model: Any,
    make_windows: Callable[..., Any],
    share: float,
    importance: str,
) -> None:
    windows = make_windows(3)
    needed = needs(monkeypatch, family_model, windows, 1)
    monkeypatch.setattr(gradient_memory, "free_host_bytes", lambda: int(share * needed.host / 0.8))
    backend, (note,) = settle(family_model, Structured(importance="auto", repair=True), windows)
    assert backend == Structured(importance=importance, repair=True)
    assert note.startswith(f"importance auto ran as {importance}: gradients need ")
    assert f"{needed.host / MIB:,.1f} MiB of host memory" in note
    assert ("at most 80%" in note) == (importance == "taylor")


def test_where_free_memory_is_not_known_no_gradients_are_taken(
    monkeypatch: pytest.MonkeyPatch, tiny_llama: Any, make_windows: Callable[..., Any]
) -> None:
    monkeypatch.setattr(gradient_memory, "free_host_bytes", lambda: 0)
    backend, _ = settle(tiny_llama, Structured(importance="auto"), make_windows(2))
    assert backend == Structured()


@pytest.mark.parametrize("backend", [Structured(), Structured(importance="taylor"), Wanda()])
def test_what_leaves_nothing_open_stays_as_it_is(
    tiny_llama: Any, make_windows: Callable[..., Any], backend: Any
) -> None:
    assert settle(tiny_llama, backend, make_windows(2)) == (backend, ())


def system(root: Path, **files: str) -> Path:
    """A folder with the files of a Linux system that tell about memory; `__` in a name is a slash."""
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


MEMINFO = {"proc__meminfo": "MemTotal:       8388608 kB\nMemFree:  1 kB\nMemAvailable:   1048576 kB\n"}
GROUP = "sys__fs__cgroup__memory."
OLD_GROUP = "sys__fs__cgroup__memory__memory."


@pytest.mark.parametrize(
    ("files", "mib"),
    [
        ({}, 0),
        ({"proc__meminfo": "MemTotal: 8388608 kB\n"}, 0),
        (MEMINFO, 1024),
        (MEMINFO | {f"{GROUP}max": "max\n", f"{GROUP}current": "5\n", f"{GROUP}stat": ""}, 1024),
        (
            MEMINFO
            | {
                f"{GROUP}max": f"{600 * MIB}\n",
                f"{GROUP}current": f"{250 * MIB}\n",
                f"{GROUP}stat": f"anon 7\ninactive_file {50 * MIB}\nactive_file 9\n",
            },
            400,
        ),
        (
            MEMINFO
            | {
                f"{OLD_GROUP}limit_in_bytes": f"{600 * MIB}\n",
                f"{OLD_GROUP}usage_in_bytes": f"{700 * MIB}\n",
                f"{OLD_GROUP}stat": f"inactive_file 1\ntotal_inactive_file {150 * MIB}\n",
            },
            50,
        ),
        (MEMINFO | {f"{GROUP}max": "600\n", f"{GROUP}current": "700\n", f"{GROUP}stat": ""}, 0),
        (MEMINFO | {f"{GROUP}max": f"{900 * MIB * 9}\n", f"{GROUP}current": "0\n", f"{GROUP}stat": ""}, 1024),
    ],
)  # fmt: skip
def test_free_host_memory_is_what_system_and_container_leave(
    tmp_path: Path, files: dict[str, str], mib: int
) -> None:
    assert free_host_bytes(system(tmp_path, **files)) == mib * MIB


def test_free_device_memory_includes_what_torch_holds_in_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 30)
    assert free_device_bytes(torch.device("cuda")) == 140
    assert free_device_bytes(HOST) == 0
