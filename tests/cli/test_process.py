"""The command in a process of its own: light where it can be, and silent but for us."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COMMAND = (sys.executable, "-m", "owl_compress")


def process(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("measure", "--help"),  # that of run and compress names the options of backends, and so loads them
        ("allocate", "--help"),
        ("allocate", "report.json", "--sparsity", "0.5", "-o", "plan.json"),
        ("run", "model", "--sparsity", "1.2", "-o", "OUT"),
        ("export", "none.json", "--to", "llm-compressor", "-o", "recipe.yaml"),
        ("import", "none.csv", "--from", "csv", "--report", "report.json", "-o", "plan.json"),
    ],
)
def test_torch_is_not_loaded_for_little_things(report: Path, arguments: tuple[str, ...]) -> None:
    script = (
        "import sys\n"
        "from owl_compress.cli import _exit_code\n"
        "_exit_code(sys.argv[1:])\n"
        "sys.stderr.write(' '.join({'torch', 'transformers', 'matplotlib', 'datasets'} & set(sys.modules)))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, *arguments, *([] if "--help" in arguments else ["--quiet"])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not {"torch", "transformers", "matplotlib", "datasets"} & set(ran.stderr.split())


def test_streams_of_a_whole_run(here: Path, done: Callable[..., Any]) -> None:
    """Nothing but JSON on stdout, nothing but our own lines on stderr; the same bytes as in this process."""
    config = json.loads((here / "model" / "generation_config.json").read_text())
    (here / "model" / "generation_config.json").write_text(json.dumps(config | {"temperature": 0.5}))
    options = (
        "run", "model", "--calib", "text.txt", "--data", "other.txt", "--samples", "4", "--seq-len", "32",
        "--sparsity", "0.5",
    )  # fmt: skip
    ran = process(*options, "-o", "OUT", "--json")
    assert ran.returncode == 0
    assert json.loads(ran.stdout)["totals"]["asked"] == pytest.approx(0.5)
    starts = [line.split(":")[0] for line in ran.stderr.splitlines()]
    assert starts == [
        "loading model", "estimated peaks", "measuring blocks", "evaluating", "compressing blocks",
        "evaluating", "owl-compress", "wrote OUT",
    ]  # fmt: skip
    assert "generation_config.json is kept as the source has it" in ran.stderr
    done(*options, "-o", "HERE", "--quiet")
    for name in ("model.safetensors", "plan.json", "report.json", "recipe.yaml", "README.md"):
        assert (here / "HERE" / name).read_bytes() == (here / "OUT" / name).read_bytes(), name


def test_installed_command(here: Path) -> None:
    script = Path(sys.executable).with_name("owl-compress")
    if not script.exists():
        pytest.skip("not installed as a command")
    ran = subprocess.run([script, "-h"], capture_output=True, text=True, check=True)
    assert "allocate" in ran.stdout


def test_a_reader_that_has_enough(report: Path) -> None:
    """`owl-compress ... | head -1` ends quietly, with the exit code that a shell gives for it."""
    quoted = f"'{sys.executable}' -m owl_compress"
    ran = subprocess.run(
        f"{quoted} allocate report.json --sparsity 0.5 --dry-run --json | true; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.stderr == ""
    assert ran.returncode == 128 + 13
