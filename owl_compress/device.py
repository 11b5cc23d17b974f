"""Where tensors live, in which type, and how much memory that took."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from owl_compress.errors import RequestError
from owl_compress.registry import nearest

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

MEMORY_REMEDIES = "use a smaller --batch-size or --seq-len, --dtype bfloat16, or a device with more memory"

# How torch's CPU allocator and a few CUDA libraries word it, in plain RuntimeErrors.
_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED", re.I
)


def resolve_device(name: str) -> torch.device:
    """The device behind `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        RequestError: no such device, or CUDA is asked for and absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    wanted = re.fullmatch(r"cuda(?::(\d+))?", name)
    if not wanted:
        known = nearest(name, ["auto", "cpu", "cuda"])
        raise RequestError(f"unknown device {name!r} ({known}): one of several GPUs is named like 'cuda:1'")
    if not torch.cuda.is_available():
        reason = "torch is built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
        raise RequestError(f"device {name!r} is asked for but {reason}: use --device cpu or auto")
    n_devices = torch.cuda.device_count()
    if int(wanted[1] or 0) >= n_devices:
        raise RequestError(
            f"device {name!r} is asked for but there are {n_devices}: the last is 'cuda:{n_devices - 1}'"
        )
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype behind `bfloat16`, `float16`, `float32` or `auto`.

    `auto` is float32 on a CPU (where half precision is slower and changes small perplexities) and, on CUDA,
    bfloat16 where the device has it, else float16.

    Raises:
        RequestError: unknown name.
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if name not in DTYPES:
        raise RequestError(f"unknown dtype {name!r}: {nearest(name, ['auto', *DTYPES])}")
    return DTYPES[name]


def peak_device_bytes(device: torch.device) -> int:
    """Most bytes of tensors held at once on a CUDA device since the start, or the last reset; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


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


def free_device_bytes(device: torch.device) -> int:
    """Bytes that tensors can still take on a CUDA device, torch's own reserve included; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


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
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise RequestError(_memory_message(what, error, remedies)) from error
    except RuntimeError as error:
        if not _NO_MEMORY.search(str(error)):
            raise
        raise RequestError(_memory_message(what, error, remedies)) from error


def _memory_message(what: str, error: BaseException, remedies: str) -> str:
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
    amount = f" (another {wanted[1]} did not fit)" if wanted else ""
    return f"out of memory while {what}{amount}: {remedies}"


_HEADROOM = 0.6
"""Share of the free device memory that weights may take; activations and statistics need the rest."""


def place_(model: nn.Module, device: torch.device) -> None:
    """Move `model` to `device` if its weights fit there with room to work; else it stays on the host.

    A model on the host is visited block by block and needs one block on the device at a time.
    """
    if device.type != "cuda":
        return
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if size < _HEADROOM * free_device_bytes(device):
        model.to(device)
