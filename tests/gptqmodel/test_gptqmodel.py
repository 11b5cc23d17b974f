"""The package GPTQModel for real, in an environment of its own: quantize, read back, reload."""

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from owl_compress.cli import _exit_code

pytestmark = [
    pytest.mark.gptqmodel,
    # What the packages below warn about is none of ours here.
    pytest.mark.filterwarnings("ignore"),
]

TEXT = ("--calib", "builtin", "--data", "builtin", "--samples", "8", "--seq-len", "256", "--max-windows", "4")
BITS = ("--allocator", "owl", "--bits", "3", "--bit-choices", "2,3,4")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model at 2, 3 and 4 bits."""
    pytest.importorskip("gptqmodel", reason="needs the extra gptqmodel: make gptqmodel")
    folder = tmp_path_factory.mktemp("gptqmodel") / "OUT"
    words = ("run", "builtin", "--backend", "gptqmodel", *BITS, *TEXT, "--device", "cpu", "--quiet")
    assert _exit_code([*words, "-o", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def result(out: Path) -> Any:
    """What the result says."""
    return json.loads((out / "result.json").read_text())


def test_every_linear_has_its_width(result: Any) -> None:
    assert {row["achieved"] for row in result["budgets"]} == {2, 3, 4}
    assert all(row["asked"] == row["achieved"] for row in result["budgets"])
    assert result["totals"]["achieved"] <= 3
    # Of the weights, read back from the codes; in a wrong order they would be another matrix: an error of 2.
    # Single linears move far, since 2048 tokens leave many directions of 1536 inputs free.
    assert all(0 < row["relative_error"] < 1.5 for row in result["budgets"])
    for bits, limit in {2: 0.7, 3: 0.13, 4: 0.03}.items():
        errors = [row["relative_error"] for row in result["budgets"] if row["achieved"] == bits]
        assert median(errors) < limit, bits
    assert 0 < result["evaluation"]["dense"]["perplexity"] < result["evaluation"]["compressed"]["perplexity"]


def test_nothing_is_left_over(out: Path) -> None:
    assert not (out / ".dense").exists()
    assert "/tmp" not in (out / "config.json").read_text()
    assert not Path("logs").exists()
    assert not [path for path in out.parent.iterdir() if path != out]


def test_gptqmodel_reads_it_and_is_the_model_we_evaluated(out: Path, result: Any) -> None:
    from gptqmodel import BACKEND, GPTQModel

    from owl_compress.evaluation.perplexity import perplexity
    from owl_compress.pipeline.stages import load
    from owl_compress.pipeline.windows import hold_out

    model = GPTQModel.load(str(out), device="cpu", backend=BACKEND.TORCH).model
    modules = dict(model.named_modules())
    assert {row["name"]: modules[row["name"]].bits for row in result["budgets"]} == {
        row["name"]: row["asked"] for row in result["budgets"]
    }
    windows = hold_out(load("builtin"), "builtin", seq_len=256, max_windows=4)
    with torch.no_grad():
        found = perplexity(model, windows).perplexity
    ours = result["evaluation"]["compressed"]["perplexity"]
    assert found == pytest.approx(ours, rel=0.05)  # its bfloat16 against our float32 of the same codes
