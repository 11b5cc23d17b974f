"""What every benchmark row says of where it comes from."""

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from owl_compress.documents.versions import versions


def print_row(benchmark: str, **measured: Any) -> None:
    """Print one JSON row: the measurement, the command, the commit, the machine and the versions."""
    print(json.dumps({"benchmark": benchmark, **measured, **_origin()}), flush=True)


def _origin() -> dict[str, Any]:
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    ).stdout.strip()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": " ".join(
            [Path(sys.argv[0]).name, *(Path(a).name if "/" in a else a for a in sys.argv[1:])]
        ),
        "commit": commit,
        "machine": {"cpu": platform.machine(), "threads": torch.get_num_threads(), "gpu": gpu},
        "versions": versions(),
    }
