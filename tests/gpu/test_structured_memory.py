"""Structured removal on a CUDA device, by its own count of bytes: one block at a time."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from owl_compress.backends.structured import Structured

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

HIDDEN = 1024
SLACK = 1 << 20  # rounding of the allocator


@pytest.fixture
def bench() -> Iterator[Any]:
    """The benchmark that measures it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        yield importlib.import_module("structured_memory")


def test_the_device_holds_one_block_however_many_there_are(bench: Any) -> None:
    windows, backend = bench.random_windows(4, 64), Structured(uniform_width=True)
    few, many = (
        bench.measure_memory(bench.random_llama(n_blocks, HIDDEN), windows, backend, torch.device("cuda"))
        for n_blocks in (3, 9)
    )
    assert abs(many.working_bytes - few.working_bytes) <= SLACK
    # beside the block: scores of its largest linear, and what one window takes
    assert few.working_bytes < few.block_bytes < many.model_bytes / 8
