"""Recovery in processes of its own: killed and resumed, and shared out among several."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

WEIGHTS = "model.safetensors"
ASKED = (
    "recover", "OUT", "--data", "text.txt", "--seq-len", "32", "--steps", "20", "--method", "masked",
    "--accumulate", "4", "--quiet",
)  # fmt: skip
ALONE = (sys.executable, "-m", "owl_compress")
KILLED = (
    sys.executable,
    "-c",
    """
import os, signal
from owl_compress.cli import main
from owl_compress.recovery import training

write_state = training.write_state

def killed_after_step_two(*arguments):
    write_state(*arguments)
    if arguments[3].step == 2:
        os.kill(os.getpid(), signal.SIGKILL)

training.write_state = killed_after_step_two
main()
""",
)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

pytestmark = pytest.mark.slow


@pytest.fixture
def compressed(here: Path, done: Callable[..., Any], run_options: tuple[str, ...]) -> Path:
    done(*run_options, "-o", "OUT", "--quiet")
    return here / "OUT"


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_one_that_was_killed_goes_on_to_the_same_weights(here: Path, compressed: Path) -> None:
    subprocess.run([*ALONE, *ASKED, "-o", "whole"], cwd=here, env=environment(), check=True)
    killed = subprocess.run([*KILLED, *ASKED, "-o", "OUT2"], cwd=here, env=environment(), check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (here / "OUT2.unfinished").exists()
    assert not (here / "OUT2").exists()
    subprocess.run([*ALONE, *ASKED, "-o", "OUT2", "--resume"], cwd=here, env=environment(), check=True)
    assert (here / "OUT2" / WEIGHTS).read_bytes() == (here / "whole" / WEIGHTS).read_bytes()
    assert {
        path.name for path in here.iterdir() if ".OUT2" in path.name or "unfinished" in path.name
    } == set()


def test_two_processes_come_to_what_one_does(here: Path, compressed: Path) -> None:
    subprocess.run([*ALONE, *ASKED, "-o", "one"], cwd=here, env=environment(), check=True)
    command = [*TORCHRUN, "--no-python", *ALONE, *ASKED, "-o", "two"]
    found = subprocess.run(command, cwd=here, env=environment(), check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    one, two = (load_file(here / name / WEIGHTS) for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=2e-4) for name in one)
    assert all(torch.equal(one[name] == 0, two[name] == 0) for name in one)


def test_a_number_of_processes_that_does_not_divide_the_passes_is_refused(
    here: Path, compressed: Path
) -> None:
    command = [*TORCHRUN, "--no-python", *ALONE, *ASKED, "--accumulate", "3", "-o", "two"]
    found = subprocess.run(command, cwd=here, env=environment(), check=False, capture_output=True, text=True)
    assert found.returncode != 0
    assert "--accumulate to a multiple of 2" in found.stderr
    assert not (here / "two").exists()
