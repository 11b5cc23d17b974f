"""The same commands under torchrun: plans are identical, results as near as sums in another order come."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

WEIGHTS = "model.safetensors"
COMMAND = (sys.executable, "-m", "owl_compress")
TEXT = ("--calib", "text.txt", "--samples", "6", "--seq-len", "32", "--data", "other.txt")


FAULT = """
import os, sys, time
from datetime import timedelta
from owl_compress.walk import ranks

ranks.PATIENCE = timedelta(seconds=5)
if os.environ["RANK"] == "1":
    ranks.Ranks.add_up_ = lambda *_: {fault}
from owl_compress.cli import main
main()
"""


def together(
    here: Path, processes: int, *arguments: str, command: tuple[str, ...] = COMMAND
) -> subprocess.CompletedProcess[str]:
    """A command in so many processes of torchrun."""
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
    return subprocess.run(
        [*torchrun, str(processes), "--no-python", *command, *arguments],
        cwd=here, capture_output=True, text=True, check=False, timeout=1200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def run_alone_and_together(
    here: Path, done: Callable[..., Any], processes: int, options: tuple[str, ...]
) -> list[tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """The weights and the result of one process and of several; plans, shapes and perplexity agree."""
    done("run", "model", *options, *TEXT, "-o", "one", "--quiet")
    found = together(here, processes, "run", "model", *options, *TEXT, "-o", "several", "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["totals"]
    plans = [json.loads((here / name / "plan.json").read_text())["budgets"] for name in ("one", "several")]
    assert [row["value"] for row in plans[0]] == pytest.approx([row["value"] for row in plans[1]], abs=1e-9)
    one, several = (load_file(here / name / WEIGHTS) for name in ("one", "several"))
    assert {name: tensor.shape for name, tensor in one.items()} == {
        name: tensor.shape for name, tensor in several.items()
    }
    results = [json.loads((here / name / "result.json").read_text()) for name in ("one", "several")]
    perplexities = [result["evaluation"]["compressed"]["perplexity"] for result in results]
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-3)
    assert [row["name"] for row in results[0]["budgets"]] == [row["name"] for row in results[1]["budgets"]]
    assert done("verify", "several", "--json").json["ok"]
    return [(one, results[0]), (several, results[1])]


@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (2, ("--backend", "wanda", "--sparsity", "0.6")),
        (3, ("--backend", "sparsegpt", "--nm", "4:8")),
        (2, ("--backend", "sparsegpt", "--sparsity", "0.5", "--statistics", "true-sequential")),
        (2, ("--backend", "structured", "--prune-ratio", "0.3", "--round-to", "8", "--repair")),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else str(value),
)
def test_several_processes_come_to_what_one_does(
    here: Path, done: Callable[..., Any], processes: int, options: tuple[str, ...]
) -> None:
    (one, _), (several, _) = run_alone_and_together(here, done, processes, options)
    for name in one:
        assert torch.isclose(one[name], several[name], atol=1e-4).float().mean() > 0.995


def test_several_processes_round_to_the_codes_of_one_but_for_near_ties(
    here: Path, done: Callable[..., Any]
) -> None:
    """A weight halfway between two codes goes either way with the order of the sums.

    GPTQ lets the rest of its row make up for it, and the blocks behind see other inputs. So it is in one
    process: with Gram matrices multiplied by 1 + 1e-7 of noise, 50 models of this shape differ in none to
    four of the 256 rows of the first block, in up to a third of the weights of a matrix of the last, and in
    the sum of all errors by 1.1 %.
    """
    options = ("--backend", "gptq", "--bits", "3", "--group-size", "16", "--format", "dense")
    (one, alone), (several, together_) = run_alone_and_together(here, done, 2, options)
    first = [name for name in one if "layers.0." in name and one[name].ndim == 2]
    is_same = [torch.isclose(one[name], several[name], atol=1e-4).all(dim=1) for name in first]
    assert torch.cat(is_same).numel() == 256
    assert (~torch.cat(is_same)).sum() <= 8
    errors = [sum(row["relative_error"] for row in result["budgets"]) for result in (alone, together_)]
    assert errors[0] == pytest.approx(errors[1], rel=0.03)


@pytest.mark.parametrize("backend", ["rtn", "gptq"])
def test_several_processes_write_packed_codes_and_read_them(
    here: Path, done: Callable[..., Any], backend: str
) -> None:
    """Codes are packed unless somebody says otherwise: the leader alone tries and writes them."""
    options = ("--backend", backend, "--bits", "3", "--bit-choices", "2,3,4", "--group-size", "16")
    found = together(here, 2, "run", "model", *options, *TEXT, "-o", "several", "--quiet")
    assert found.returncode == 0, found.stderr
    assert done("verify", "several", "--json").json["ok"]
    if backend == "rtn":  # which no sum has a part in
        done("run", "model", *options, *TEXT, "-o", "one", "--quiet")
        one, several = (load_file(here / name / WEIGHTS) for name in ("one", "several"))
        assert one.keys() == several.keys()
        assert all(torch.equal(one[name], several[name]) for name in one)
    read = together(here, 2, "measure", "several", *TEXT[:6], "-o", "report.json", "--quiet")
    assert read.returncode == 0, read.stderr


def test_reports_of_several_processes_are_those_of_one(here: Path, done: Callable[..., Any]) -> None:
    asked = ("measure", "model", *TEXT[:6], "-o")
    done(*asked, "one.json", "--quiet")
    found = together(here, 2, *asked, "several.json", "--quiet")
    assert found.returncode == 0, found.stderr
    one, several = (json.loads((here / name).read_text()) for name in ("one.json", "several.json"))
    assert one["provenance"] == several["provenance"]
    for ours, theirs in zip(one["blocks"], several["blocks"], strict=True):
        assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-4)


def test_several_processes_evaluate_as_one_does_and_one_of_them_speaks(
    here: Path, done: Callable[..., Any]
) -> None:
    asked = ("eval", "model", "--data", "other.txt", "--seq-len", "32")
    (here / "quiz.jsonl").write_text(
        "".join(
            json.dumps({"question": f"{n} and {n}?", "choices": ["one", "two"], "label": n % 2}) + "\n"
            for n in range(4)
        )
    )
    tasks = ("--task-file", "quiz.jsonl", "--log-samples", "samples.jsonl")
    alone = done(*asked, "--json").json
    found = together(here, 2, *asked, *tasks, "--json")
    assert found.returncode == 0, found.stderr
    several = json.loads(found.stdout)
    assert several["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-5)
    assert several["windows"] == alone["windows"]
    assert [one["samples"] for one in several["tasks"].values()] == [4]
    assert len((here / "samples.jsonl").read_text().splitlines()) == 4
    assert found.stderr.count("loading model") == 1
    refused = together(here, 2, *asked, "--latency")
    assert refused.returncode != 0
    assert "--latency times one process: start it without torchrun" in refused.stderr


@pytest.mark.parametrize(
    ("options", "processes"),
    [(("--backend", "wanda"), 3), (("--backend", "rtn", "--group-size", "16", "--levels", "2,3,4"), 2)],
    ids=["wanda", "rtn"],
)
def test_profiles_of_several_processes_are_those_of_one(
    here: Path, done: Callable[..., Any], options: tuple[str, ...], processes: int
) -> None:
    asked = (
        "sensitivity", "model", *options, *TEXT[:6], "--damage-samples", "2", "--damage-len", "32", "-o",
    )  # fmt: skip
    done(*asked, "one.json", "--quiet")
    found = together(here, processes, *asked, "several.json", "--json")
    assert found.returncode == 0, found.stderr
    one, several = (json.loads((here / name).read_text()) for name in ("one.json", "several.json"))
    assert json.loads(found.stdout) == several
    assert [part["name"] for part in one["parts"]] == [part["name"] for part in several["parts"]]
    for ours, theirs in zip(one["parts"], several["parts"], strict=True):
        assert ours["levels"] == theirs["levels"]
        assert ours["damage"] == pytest.approx(theirs["damage"], rel=1e-2)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "refine",
            ("--plan", "plan.json", "--max-cost", "20k", "--damage-samples", "2", "--damage-len", "32"),
        ),
        ("tune", ("--sparsity", "0.5", "--candidates", "uniform,linear-depth", "--damage-len", "32")),
    ],
    ids=["refine", "tune"],
)
def test_searches_of_several_processes_find_what_one_does(
    here: Path, done: Callable[..., Any], command: str, options: tuple[str, ...]
) -> None:
    done("measure", "model", *TEXT[:6], "-o", "report.json", "--quiet")
    done("allocate", "report.json", "--sparsity", "0.5", "-o", "plan.json", "--quiet")
    asked = (command, "model", *options, "--backend", "wanda", *TEXT[:6], "-o")
    done(*asked, "one.json", "--quiet")
    found = together(here, 2, *asked, "several.json", "--quiet")
    assert found.returncode == 0, found.stderr
    one, several = (json.loads((here / name).read_text()) for name in ("one.json", "several.json"))
    assert [row["value"] for row in one["budgets"]] == [row["value"] for row in several["budgets"]]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--samples", "1"), "cannot be divided among 2 processes"),
        (("--resume",), "--resume is for one process"),
        (("--sparsity", "1.5"), "sparsity"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_several_cannot_do_is_one_line(here: Path, arguments: tuple[str, ...], told: str) -> None:
    found = together(
        here, 2, "run", "model", *TEXT, "--sparsity", "0.5", *arguments, "-o", "OUT", "--quiet"
    )  # the last of an option counts
    assert found.returncode != 0
    lines = [line for line in found.stderr.splitlines() if line.startswith("owl-compress: ")]
    assert [told in line for line in lines if not line.startswith("owl-compress: process 1")] == [True]
    assert not (here / "OUT").exists()
    assert not [path for path in here.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("fault", "told"),
    [("os.kill(os.getpid(), 9)", ""), ("time.sleep(2000)", "another of the 2 has gone, or did not answer")],
    ids=["dies", "hangs"],
)
def test_one_that_dies_or_hangs_ends_all(here: Path, fault: str, told: str) -> None:
    command = (sys.executable, "-c", FAULT.format(fault=fault))
    asked = ("run", "model", *TEXT, "--sparsity", "0.5", "-o", "OUT", "--quiet")
    start = time.monotonic()
    found = together(here, 2, *asked, command=command)
    assert time.monotonic() - start < 1000
    assert found.returncode != 0
    assert told in found.stderr
    assert "defect of ours" not in found.stderr
    assert {path.name for path in here.iterdir()} == {"model", "text.txt", "other.txt"}
