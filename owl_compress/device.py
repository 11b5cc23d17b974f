"""Where tensors live, in which type, and how much room there is.

Importing this loads no torch; its functions do when they are called.

"""

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from owl_compress.errors import RequestError, nearest

if TYPE_CHECKING:
    import torch

DTYPES = ("bfloat16", "float16", "float32")
"""The types that weights may be loaded in, besides the checkpoint's own."""


def resolve_device(name: str) -> "torch.device":
    """The device behind `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.

    Of several processes that torchrun started, each has the GPU of its own number, unless one is named.

    Raises:
        RequestError: no such device, CUDA is asked for and absent, or there are more processes than GPUs.
    """
    import torch

    if name == "auto":
        return resolve_device("cuda") if torch.cuda.is_available() else torch.device("cpu")
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
    if wanted[1] is None and (own := own_gpu()):
        return torch.device(own)
    if int(wanted[1] or 0) >= n_devices:
        raise RequestError(
            f"device {name!r} is asked for but there are {n_devices}: the last is 'cuda:{n_devices - 1}'"
        )
    return torch.device(name)


def own_gpu(variables: Mapping[str, str] | None = None) -> str | None:
    """The GPU of this process alone, which torchrun gives by LOCAL_RANK; None where there is none.

    Raises:
        RequestError: more processes than GPUs.
    """
    import torch

    local = (os.environ if variables is None else variables).get("LOCAL_RANK", "")
    n_gpus = torch.cuda.device_count()
    if not local.isdecimal() or not n_gpus:
        return None
    if int(local) >= n_gpus:
        raise RequestError(f"process {local} of torchrun has no GPU: there are {n_gpus}: start as many")
    return f"cuda:{local}"


def given_device(device: "torch.device | str | None") -> "torch.device | None":
    """The device that a caller of the library names, as `resolve_device` knows them; None stays open.

    Raises:
        RequestError: see there.
    """
    return resolve_device(device) if isinstance(device, str) else device


def find_dtype(name: "torch.dtype | str") -> "torch.dtype | Literal['auto']":
    """The type called `name`, or given as torch's own; "auto", the checkpoint's own, stands for itself.

    Raises:
        RequestError: unknown name.
    """
    import torch

    if name == "auto":
        return "auto"
    name = str(name).removeprefix("torch.")
    if name not in DTYPES:
        raise RequestError(f"unknown dtype {name!r}: {nearest(name, ['auto', *DTYPES])}")
    found: torch.dtype = getattr(torch, name)
    return found


def peak_device_bytes(device: "torch.device") -> int:
    """Most bytes of tensors held at once on a CUDA device since the start, or the last reset; 0 on a CPU."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def free_device_bytes(device: "torch.device") -> int:
    """Bytes that tensors can still take on a CUDA device, torch's own reserve included; 0 on a CPU."""
    import torch

    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
