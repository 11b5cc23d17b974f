"""`--statistics`: on every way to a checkpoint, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_a_run_and_its_plan_carried_out_make_the_same_checkpoint(
    here: Path, done: Callable[..., Any], run_options: tuple[str, ...], text_options: tuple[str, ...]
) -> None:
    dense = ("--statistics", "dense", "--quiet")
    found = done(*run_options, *dense, "-o", "ONE", "--json").json
    assert found["statistics"] == "dense"
    done("compress", "model", "--plan", "ONE/plan.json", *text_options, *dense, "-o", "TWO")
    done("run", "ONE/recipe.yaml", "-o", "THREE", "--quiet")
    done(*run_options, "--statistics", "sequential", "-o", "SEQUENTIAL", "--quiet")
    first, *others = (
        Path(out, "model.safetensors").read_bytes() for out in ("ONE", "TWO", "THREE", "SEQUENTIAL")
    )
    assert [other == first for other in others] == [True, True, False]
    assert json.loads(Path("THREE/result.json").read_text())["statistics"] == "dense"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--statistics", "denze"), "statistics: "),
        (("--statistics", "dense", "--backend", "sparsegpt"), "backend 'sparsegpt' with these options needs"),
        (("--statistics", "dense", "--backend", "gptqmodel", "--bits", "3"), "'gptqmodel' gathers its own"),
    ],
)
def test_what_cannot_be_done_is_refused(
    here: Path, refused: Callable[..., str], text_options: tuple[str, ...], options: tuple[str, ...],
    message: str,
) -> None:  # fmt: skip
    budget = () if "--bits" in options else ("--sparsity", "0.6")
    assert message in refused("run", "model", *text_options, *budget, *options, "-o", "OUT")


def test_what_measures_alone_has_no_such_option(refused: Callable[..., str], here: Path) -> None:
    assert "--statistics" in refused("measure", "model", "--statistics", "dense", "-o", "report.json")
