"""Where the rows of a comparison come from."""

import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from owl_compress.documents.comparison import RowProvenance
from owl_compress.documents.versions import versions


def provenance(command: str, device: torch.device | None, texts: Mapping[str, str]) -> RowProvenance:
    """Versions, machine and command of this process, and the token ids that were looked at."""
    machine = {"system": platform.system(), "cpu": _cpu(), "threads": str(torch.get_num_threads())}
    if device is not None and device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    return RowProvenance(versions=versions(), machine=machine, command=command, texts=dict(texts))


def _cpu() -> str:
    """The model of the processor where the system tells it, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
