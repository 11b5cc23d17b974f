"""Host memory: how much was taken, how much is left, and what running out of it means for the user."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from owl_compress.errors import RequestError

MEMORY_REMEDIES = "use a smaller --batch-size or --seq-len, --dtype bfloat16, or a device with more memory"

# How torch's CPU allocator and a few CUDA libraries word it, in plain RuntimeErrors.
_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED", re.I
)

_MADV_PAGEOUT = 21
"""Advice to Linux (5.4 and later; older ones refuse it, and nothing happens), which mmap has no name for."""


def peak_host_bytes() -> int:
    """Most bytes of host memory this process has held at once (0 where the system does not tell)."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: ru_maxrss would also count the parent's memory from before exec
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii", errors="replace"), re.M)
        if found:
            return int(found[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource  # noqa: PLC0415 - absent on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def page_out(address: int, n_bytes: int) -> None:
    """Take a range of memory out if it is part of a mapped file; touched again, it is read from there.

    Nothing is lost by it, and what was written since stays in memory. Only whole pages, and only on Linux;
    elsewhere, and with memory that is not a file's, nothing happens.
    """
    if sys.platform != "linux" or not _is_of_a_file(address):
        return
    import ctypes  # noqa: PLC0415 - few need it
    import mmap  # noqa: PLC0415

    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (address + n_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < stop:
        madvise = ctypes.CDLL(None).madvise
        madvise(ctypes.c_void_p(first), ctypes.c_size_t(stop - first), _MADV_PAGEOUT)


def _is_of_a_file(address: int) -> bool:
    """Whether Linux says that a file is mapped there."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        first, stop = (int(part, 16) for part in line.split(maxsplit=1)[0].split("-"))
        if first <= address < stop:
            return line.split(maxsplit=5)[-1].startswith("/")
    return False


def forget_peak_host_bytes() -> None:
    """Have `peak_host_bytes` count from here on, where the system lets it: on Linux, mostly."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def free_host_bytes(root: Path = Path("/")) -> int:
    """Bytes of host memory that this process can still take (0 where the system does not tell).

    Linux's own estimate, and what the limit of a container leaves if that is less. Below `root` lie the
    files that say so.
    """
    meminfo = root / "proc/meminfo"
    if not meminfo.exists():
        return 0
    available = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="ascii"), re.M)
    if not available:
        return 0
    groups = root / "sys/fs/cgroup"
    limits = [
        _left_in_group(groups / "memory.max", groups / "memory.current", "inactive_file"),
        _left_in_group(
            groups / "memory/memory.limit_in_bytes",
            groups / "memory/memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ]
    return min([int(available[1]) * 1024, *(left for left in limits if left is not None)])


def _left_in_group(limit: Path, used: Path, cache: str) -> int | None:
    """What a control group may still take; pages of files that nobody reads are given back when needed."""
    try:
        most, taken = limit.read_text(encoding="ascii").strip(), int(used.read_text(encoding="ascii"))
        reclaimable = re.search(rf"^{cache} (\d+)", (limit.parent / "memory.stat").read_text("ascii"), re.M)
    except (OSError, ValueError):
        return None
    if not most.isdigit():  # "max"
        return None
    return max(0, int(most) - taken + (int(reclaimable[1]) if reclaimable else 0))


@contextmanager
def memory_errors(what: str, remedies: str = MEMORY_REMEDIES) -> Iterator[None]:
    """Turn running out of host or device memory inside the block into a RequestError.

    Args:
        what: what was being done, such as "evaluating".
        remedies: what the user can do about it.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch's own out-of-memory errors are RuntimeErrors too, and say so in these words.
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        raise RequestError(_memory_message(what, error, remedies)) from error


def _memory_message(what: str, error: BaseException, remedies: str) -> str:
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
    amount = f" (another {wanted[1]} did not fit)" if wanted else ""
    return f"out of memory while {what}{amount}: {remedies}"
