"""What a process takes from its start to its end."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

Found = TypeVar("Found")

COMMAND = str(Path(sys.executable).with_name("owl-compress"))
"""The program, in the environment that the benchmark runs in."""


def apart(function: Callable[..., Found], *arguments: Any) -> Found:
    """Call `function` in a process of its own, whose memory goes with it."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@dataclass(frozen=True)
class Spent:
    """CPU seconds, the most that was resident, and what was printed."""

    cpu_seconds: float
    peak_bytes: int
    output: str = field(repr=False)


def spent_by(command: Sequence[str], folder: Path, log: Path) -> Spent:
    """Run `command` in `folder` with one thread; what it prints goes to the file `log`, too.

    What this process holds at the moment is the least that the peak can be: the kernel passes it on. What
    takes much memory is done `apart`.

    Raises:
        RuntimeError: it did not end well.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with log.open("w+", encoding="utf-8") as printed:
        process = subprocess.Popen(
            command, cwd=folder, stdout=printed, stderr=subprocess.STDOUT, env=os.environ | threads
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        output = printed.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {output[-2000:]}")
    return Spent(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, output)
