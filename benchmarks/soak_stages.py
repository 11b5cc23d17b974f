"""The commands that are killed, and what they read: small enough that one takes a second."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from soak_processes import forked
from tiny import save_tiny

_TEXT = ("--calib", "../inputs/text.txt", "--samples", "4", "--seq-len", "32")
_OTHER = ("--data", "../inputs/other.txt", "--max-windows", "2")
_MODEL = "../inputs/model"
_GRID = """
model: ../inputs/model
calib: ../inputs/text.txt
data: ../inputs/other.txt
samples: 4
seq-len: 32
max-windows: 2
allocator: [uniform, owl]
sparsity: 0.5
"""


@dataclass(frozen=True)
class Stage:
    """A command, started beside the folder `inputs`, and the file or folder that it makes.

    `resumes` says that it keeps what is done and goes on with `--resume`, `grows` that its output takes its
    name at the start and is added to.
    """

    command: tuple[str, ...]
    output: str
    resumes: bool = False
    grows: bool = False

    @property
    def line(self) -> tuple[str, ...]:
        """The command as it is started, and started again."""
        return (*self.command, "--resume") if self.resumes else self.command


def _stage(*command: str, output: str, resumes: bool = False, grows: bool = False) -> Stage:
    return Stage((*command, "-o", output, "--quiet"), output, resumes, grows)


_RUN = ("run", _MODEL, *_TEXT, *_OTHER)
_DAMAGE = ("--damage-samples", "1", "--damage-len", "32")
STAGES: Mapping[str, Stage] = {
    "measure": _stage("measure", _MODEL, *_TEXT, output="report.json", resumes=True),
    "allocate": _stage("allocate", "../inputs/report.json", "--sparsity", "0.5", output="plan.json"),
    "sensitivity": _stage(
        "sensitivity", _MODEL, "--backend", "wanda", *_TEXT, *_DAMAGE, "--levels", "0.4,0.6",
        output="sensitivity.json", resumes=True,
    ),
    "refine": _stage(
        "refine", _MODEL, "--plan", "../inputs/plan.json", "--backend", "wanda", *_TEXT, *_DAMAGE,
        output="refined.json", resumes=True,
    ),
    "compress": _stage(
        "compress", _MODEL, "--plan", "../inputs/plan.json", "--backend", "sparsegpt", *_TEXT,
        output="out", resumes=True,
    ),
    "compress from disk": _stage(
        "compress", _MODEL, "--plan", "../inputs/plan.json", "--backend", "wanda", *_TEXT,
        "--offload", "disk", output="out", resumes=True,
    ),
    "run": _stage(*_RUN, "--sparsity", "0.5", output="out", resumes=True),
    "run gptq": _stage(
        *_RUN, "--backend", "gptq", "--bits", "3", "--bit-choices", "2,3,4", "--group-size", "8",
        output="out", resumes=True,
    ),
    "run structured": _stage(
        *_RUN, "--backend", "structured", "--allocator", "uniform", "--prune-ratio", "0.3", output="out"
    ),
    "recover": _stage(
        "recover", "../inputs/out", "--data", "../inputs/text.txt", "--seq-len", "32", "--steps", "4",
        "--method", "masked", output="recovered", resumes=True,
    ),
    "compare": _stage("compare", "../inputs/grid.yaml", output="results", grows=True),
    "export": Stage(
        ("export", "../inputs/plan.json", "--to", "llm-compressor", "-o", "recipe.yaml"), "recipe.yaml"
    ),
    "report": Stage(("report", "../inputs/out", "-o", "page.html"), "page.html"),
}  # fmt: skip


def prepare(inputs: Path) -> None:
    """Write what the commands read, with the commands themselves where they make it."""
    inputs.mkdir(parents=True)
    save_tiny(inputs / "model", n_blocks=3, hidden=32)
    (inputs / "text.txt").write_text(" ".join(f"owl{number:04d}" for number in range(500)), encoding="utf-8")
    (inputs / "other.txt").write_text(" ".join(f"{number:04d}bat" for number in range(100)), encoding="utf-8")
    (inputs / "grid.yaml").write_text(_GRID, encoding="utf-8")
    for name in ("measure", "allocate", "run"):
        started = forked(STAGES[name].command, inputs)
        if started.wait() != os.EX_OK:
            raise RuntimeError(f"{name}: {started.printed()}")
