"""How does the time grow with blocks, hidden size and tokens, and host memory with blocks read from disk?

    python benchmarks/scaling.py [--only time|memory] [--repeats 2] > rows.jsonl

Random Llamas; one size is doubled three times while the others stay. Start it with OMP_NUM_THREADS=1.

- time: CPU seconds of measuring, and of compressing by wanda, sparsegpt and gptq, the least of several; the
  exponent is the slope of a straight line through the logarithms: 1 where twice as much takes twice as long.
- memory: the peak of a whole `owl-compress run`, each a process of its own, on models that differ in depth
  alone, with `--offload disk` and `none`; the growth is that of the peak for each byte of added blocks.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import numpy as np
from processes import COMMAND, apart, spent_by
from rows import print_row
from structured_memory import random_llama, random_windows
from tiny import save_tiny

from owl_compress import compress_, measure
from owl_compress.allocators import Target, allocate
from owl_compress.backends import BACKENDS
from owl_compress.documents.plan import Plan
from owl_compress.importance.estimator import outline

_BASE = {"blocks": 2, "hidden": 256, "tokens": 4096}
_SEQ_LEN = 128
_DOUBLINGS = 3
_OPTIONS: Mapping[str, Mapping[str, int]] = {"gptq": {"group_size": 32}}  # divides all of these sizes
_TARGETS = {
    "wanda": Target.from_sparsity(0.5),
    "sparsegpt": Target.from_sparsity(0.5),
    "gptq": Target.from_bits(3, (3,)),
}
_MEMORY_BLOCKS, _MEMORY_HIDDEN = (4, 8, 16, 32), 512
_MEMORY_RUNS = (("wanda", "disk"), ("wanda", "none"))


def main() -> None:
    """The rows of one question, or of both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", choices=["", "time", "memory"])
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.only in ("", "memory"):
        _memory()
    if arguments.only in ("", "time"):
        _time(arguments.repeats)


def _time(repeats: int) -> None:
    """One row for each size that grows and each stage."""
    for axis, first in _BASE.items():
        sizes = [first << doubling for doubling in range(_DOUBLINGS + 1)]
        seconds: dict[str, list[float]] = {}
        for size in sizes:
            for stage, taken in _seconds({**_BASE, axis: size}, repeats):
                seconds.setdefault(stage, []).append(round(taken, 4))
        for stage, taken in seconds.items():
            others = {name: size for name, size in _BASE.items() if name != axis}
            print_row(
                "scaling",
                name=stage,
                grows=axis,
                sizes=sizes,
                others=others,
                seq_len=_SEQ_LEN,
                cpu_seconds=taken,
                exponent=_exponent(sizes, taken),
            )


def _seconds(sizes: Mapping[str, int], repeats: int) -> Iterator[tuple[str, float]]:
    """CPU seconds of every stage on one model; each is warmed up by one run that does not count."""
    model = random_llama(sizes["blocks"], sizes["hidden"])
    windows = random_windows(sizes["tokens"] // _SEQ_LEN, _SEQ_LEN)
    yield "measure", _least(lambda: partial(measure, model, windows), repeats)
    for backend, target in _TARGETS.items():
        plan = allocate(outline(model), "uniform", target)

        def on_a_copy(backend: str = backend, plan: Plan = plan) -> Callable[[], object]:
            return partial(
                compress_, deepcopy(model), plan, BACKENDS.create(backend, _OPTIONS.get(backend, {})), windows
            )

        yield backend, _least(on_a_copy, repeats)


def _least(prepared: Callable[[], Callable[[], object]], repeats: int) -> float:
    taken = []
    for _ in range(1 + repeats):
        work = prepared()
        start = process_time()
        work()
        taken.append(process_time() - start)
    return min(taken[1:])


def _exponent(sizes: list[int], taken: list[float]) -> float:
    slope, _ = np.polyfit(np.log(sizes), np.log(taken), 1)
    return round(float(slope), 2)


def _memory() -> None:
    """One row for each backend and each place where weights wait."""
    with TemporaryDirectory() as folder:
        here = Path(folder)
        block_bytes, *_ = apart(_save, here)
        for backend, offload in _MEMORY_RUNS:
            peaks = [_peak(here, n_blocks, backend, offload) for n_blocks in _MEMORY_BLOCKS]
            print_row("scaling", name=backend, grows="memory", **_growth(peaks, block_bytes), offload=offload)


def _save(here: Path) -> list[int]:
    return [save_tiny(here / f"m{n_blocks}", n_blocks, _MEMORY_HIDDEN) for n_blocks in _MEMORY_BLOCKS]


def _peak(here: Path, n_blocks: int, backend: str, offload: str) -> int:
    text = f"--calib builtin --samples 4 --seq-len {_SEQ_LEN} --data builtin --max-windows 4"
    asked = f"--allocator uniform --backend {backend} --sparsity 0.5 --offload {offload} --quiet"
    command = [COMMAND, "run", f"m{n_blocks}", *f"{text} {asked}".split(), "-o", f"{offload}-{n_blocks}"]
    return spent_by(command, here, here / "log").peak_bytes


def _growth(peaks: list[int], block_bytes: int) -> dict[str, Any]:
    model_bytes = [block_bytes * n_blocks for n_blocks in _MEMORY_BLOCKS]
    slope, _ = np.polyfit(model_bytes, peaks, 1)
    return {
        "sizes": list(_MEMORY_BLOCKS),
        "hidden": _MEMORY_HIDDEN,
        "block_bytes": block_bytes,
        "peak_bytes": peaks,
        "growth": round(float(slope), 3),
    }


if __name__ == "__main__":
    main()
