"""`verify`: what it counts in saved tensors, and how it tells of a linear that keeps too much."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from owl_compress.checkpoints.tensors import WEIGHTS_NAME

NAME = "model.layers.1.mlp.up_proj"
RUN = ("run", "model", "--backend", "magnitude", "--allocator", "uniform", "--quiet")


def spoil(folder: str, row: int, column: int) -> None:
    """Give one linear of the checkpoint a weight where it had none."""
    path = Path(folder) / WEIGHTS_NAME
    tensors = load_file(path)
    assert tensors[f"{NAME}.weight"][row, column] == 0
    tensors[f"{NAME}.weight"][row, column] = 1.0
    save_file(tensors, path, {"format": "pt"})


def first_zero(folder: str, row: int) -> int:
    weight = load_file(Path(folder) / WEIGHTS_NAME)[f"{NAME}.weight"]
    return int(torch.nonzero(weight[row] == 0)[0])


@pytest.mark.parametrize("options", [(), ("--quiet",), ("--json",)])
def test_a_broken_group_is_told_in_one_line(
    done: Callable[..., Any], cli: Callable[..., Any], options: tuple[str, ...]
) -> None:
    done(*RUN, "--nm", "2:4", "-o", "OUT")
    column = first_zero("OUT", 5)
    spoil("OUT", 5, column)
    outcome = cli("verify", "OUT", *options)
    assert outcome.code == 3
    assert outcome.err.strip() == (
        f"owl-compress: 1 of 21 linears in OUT keep more than plan allows: first {NAME}, 3 instead of 2 from "
        f"row 5, input {column // 4 * 4}"
    )
    if options == ("--json",):
        (violation,) = outcome.json["violations"]
        assert (violation["linear"], violation["violating"], violation["row"]) == (NAME, 1, 5)
        assert outcome.json["ok"] is False


def test_without_a_pattern_whole_linears_are_counted(
    done: Callable[..., Any], cli: Callable[..., Any]
) -> None:
    done(*RUN, "--sparsity", "0.5", "-o", "OUT")
    assert done("verify", "OUT", "--json").json["groups"] == 21
    spoil("OUT", 0, first_zero("OUT", 0))
    outcome = cli("verify", "OUT")
    assert outcome.code == 3
    assert f"first {NAME}, 1025 instead of 1024" in outcome.err


def test_a_fixed_pattern_needs_no_plan(
    done: Callable[..., Any], cli: Callable[..., Any], refused: Callable[..., str]
) -> None:
    done(*RUN, "--nm", "4:8", "-o", "OUT")
    (Path("OUT") / "plan.json").unlink()
    assert done("verify", "OUT", "--pattern", "4:8", "--json").json["ok"] is True
    outcome = cli("verify", "OUT", "--pattern", "3:8")
    assert outcome.code == 3
    assert "21 of 21 linears in OUT keep more than 3:8 allows" in outcome.err
    assert "OUT has no plan.json to verify against" in refused("verify", "OUT")


def test_packed_codes_have_no_zeros_to_count(done: Callable[..., Any], refused: Callable[..., str]) -> None:
    pytest.importorskip("compressed_tensors", reason="packs codes")
    run = ("run", "model", "--backend", "rtn", "--allocator", "uniform", "--quiet", "--group-size", "32")
    done(*run, "--bits", "4", "-o", "OUT")
    assert "OUT holds packed codes and no zeros to count" in refused("verify", "OUT", "--pattern", "2:4")
    assert done("verify", "OUT", "--json").json["ok"] is True


def test_success_is_said_in_words(done: Callable[..., Any]) -> None:
    done(*RUN, "--nm", "2:4", "-o", "OUT")
    words = " ".join(done("verify", "OUT").out.split())
    assert "ok: 21 linears with 27,648 weights counted, in 6,912 groups" in words
    assert "every group keeps no more than it may" in words
