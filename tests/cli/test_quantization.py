"""Quantization by commands: three stages and one run, packed and dense, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

WEIGHTS = "model.safetensors"
BITS = ("--bits", "3", "--bit-choices", "2,3,4")


@pytest.fixture
def quantize(text_options: tuple[str, ...]) -> tuple[str, ...]:
    """`run` on the tiny model at 3 of 2/3/4 bits, all but backend and output."""
    return ("run", "model", *text_options, "--data", "other.txt", *BITS, "--group-size", "16")


def logits(folder: str) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder)(torch.arange(3, 60)[None]).logits
    return found


@pytest.mark.parametrize("backend", ["rtn", "gptq"])
def test_three_stages_and_one_run_give_the_same_packed_bytes(
    done: Callable[..., Any], text_options: tuple[str, ...], quantize: tuple[str, ...], backend: str
) -> None:
    done("measure", "model", *text_options, "-o", "report.json")
    done("allocate", "report.json", *BITS, "-o", "plan.json")
    stages = ("compress", "model", "--plan", "plan.json", *text_options, "--group-size", "16")
    done(*stages, "--backend", backend, "-o", "STAGES")
    done(*quantize, "--backend", backend, "-o", "RUN")
    done("run", "RUN/recipe.yaml", "-o", "AGAIN")
    for other in ("STAGES", "AGAIN"):
        for name in (WEIGHTS, "config.json"):
            assert (Path(other) / name).read_bytes() == (Path("RUN") / name).read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        ("rtn",),
        ("rtn", "--mse"),
        ("gptq",),
        ("gptq", "--activation-order"),
        ("gptq", "--mse"),
    ],
    ids=" ".join,
)
def test_packed_dense_and_evaluated_models_are_one(
    done: Callable[..., Any], quantize: tuple[str, ...], options: tuple[str, ...]
) -> None:
    result = done(*quantize, "--backend", *options, "-o", "PACKED", "--json", "--quiet").json
    done(*quantize, "--backend", *options, "--format", "dense", "-o", "DENSE", "--quiet")
    assert torch.equal(logits("PACKED"), logits("DENSE"))
    assert result["totals"]["achieved"] <= 3
    assert result["totals"]["bytes_on_disk"] == (Path("PACKED") / WEIGHTS).stat().st_size
    assert result["totals"]["bytes_on_disk"] < (Path("DENSE") / WEIGHTS).stat().st_size
    assert all(row["asked"] == row["achieved"] for row in result["budgets"])
    record = done("eval", "PACKED", "--data", "other.txt", "--seq-len", "32", "--json", "--quiet").json
    assert record == result["evaluation"]["compressed"]


def test_asymmetric_and_per_row_are_stored_dense(done: Callable[..., Any], quantize: tuple[str, ...]) -> None:
    done(*quantize, "--backend", "rtn", "--asymmetric", "--format", "dense", "-o", "OUT", "--quiet")
    recipe = Path("OUT/recipe.yaml").read_text()
    assert "asymmetric: true" in recipe
    assert "format: dense" in recipe
    parameters = json.loads(Path("OUT/result.json").read_text())["backend"]["parameters"]
    assert parameters == {"group_size": 16, "symmetric": False, "mse": False}
    done(*quantize, "--backend", "gptq", "--group-size", "none", "-o", "ROWS", "--quiet")
    assert "group-size: none" in Path("ROWS/recipe.yaml").read_text()
    done("run", "ROWS/recipe.yaml", "-o", "AGAIN", "--quiet")
    assert Path("ROWS", WEIGHTS).read_bytes() == Path("AGAIN", WEIGHTS).read_bytes()


def test_linears_of_one_input_are_tied_unless_told(done: Callable[..., Any], report: Path) -> None:
    options = ("allocate", report, *BITS, "--allocator", "random", "--granularity", "linear")
    widths = []
    for tie in ((), ("--no-tie",)):
        plan = done(*options, *tie, "--dry-run", "--json").json
        values = {row["name"]: row["value"] for row in plan["budgets"]}
        widths.append([{values[f"model.layers.{i}.self_attn.{x}_proj"] for x in "qkv"} for i in range(3)])
    assert all(len(block) == 1 for block in widths[0])
    assert any(len(block) > 1 for block in widths[1])


def test_dry_run_predicts_the_packed_size(done: Callable[..., Any], quantize: tuple[str, ...]) -> None:
    predicted = {
        storage: done(*quantize, "--backend", "rtn", "--format", storage, "--dry-run", "--json").json
        for storage in ("packed", "dense")
    }
    done(*quantize, "--backend", "rtn", "-o", "OUT", "--quiet")
    size = (Path("OUT") / WEIGHTS).stat().st_size
    assert predicted["packed"]["prediction"]["checkpoint_bytes"] == pytest.approx(size, rel=0.2)
    assert predicted["dense"]["prediction"]["checkpoint_bytes"] > 1.5 * size


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--backend", "rtn"), ("q_proj has 32 inputs", "groups of 64", "--group-size")),
        (("--backend", "rtn", "--group-size", "0"), ("group-size", "0")),
        (("--backend", "rtn", "--group-size", "some"), ("group-size", "some")),
        (("--backend", "rtn", "--group-size", "16", "--asymmetric"), ("asymmetric", "--format dense")),
        (("--backend", "rtn", "--group-size", "16", "--format", "zip"), ("format", "zip")),
        (("--backend", "rtn", "--activation-order"), ("'rtn'", "takes no activation-order")),
        (
            (
                "--backend",
                "wanda",
            ),
            ("wanda", "bits"),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_what_cannot_be_quantized_is_refused(
    refused: Callable[..., str],
    text_options: tuple[str, ...],
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    message = refused("run", "model", *text_options, *BITS, *options, "-o", "OUT")
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sparsity", "0.5", "--backend", "wanda", "--format", "packed"), ("packed", "wanda", "no")),
        (("--sparsity", "0.5", "--backend", "wanda", "--asymmetric"), ("takes no asymmetric", "scope")),
        (("--bits", "1.5", "--backend", "rtn"), ("1.5", "2, 3, 4")),
        (("--bits", "3", "--bit-choices", "1,3", "--backend", "rtn"), ("2 to 8",)),
        (("--bits", "3", "--bit-choices", "3,9", "--backend", "rtn"), ("2 to 8",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_requests_that_contradict_themselves_are_refused(
    refused: Callable[..., str],
    text_options: tuple[str, ...],
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    message = refused("run", "model", *text_options, *options, "-o", "OUT")
    assert all(word in message for word in words), message


@pytest.mark.parametrize(("value", "grid"), [(2.5, [2, 3, 4]), (2.5, None), (9, None)])
def test_a_plan_with_half_or_unknown_bits_is_refused(
    done: Callable[..., Any],
    refused: Callable[..., str],
    edit_json: Callable[..., None],
    report: Path,
    value: float,
    grid: list[int] | None,
) -> None:
    done("allocate", report, *BITS, "-o", "plan.json", "--quiet")

    def change(plan: Any) -> None:
        plan["budgets"][0]["value"] = value
        plan["grid"] = grid and {"bits": grid}
        plan["high"], plan["target"] = 16, 9

    edit_json(Path("plan.json"), change)
    message = refused("compress", "model", "--plan", "plan.json", "--backend", "rtn", "-o", "OUT")
    assert "plan.json" in message
    assert f"model.layers.0.self_attn.q_proj has {float(value)}" in message
