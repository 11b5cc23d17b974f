"""What becomes of a model that lost whole sublayers: nothing in them is left to measure or to budget."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from owl_compress import load

pytestmark = pytest.mark.usefixtures("copied_modules")

WEIGHTS = "model.safetensors"
STRUCTURED = ("--backend", "structured", "--round-to", "4")
BITS = ("--bits", "4", "--bit-choices", "4", "--group-size", "8")
# Shares by block and part: the middle block goes whole, the last loses its feed-forward.
SHARES = {
    (0, "attn"): 0.5,
    (0, "mlp"): 0.5,
    (1, "attn"): 0.0,
    (1, "mlp"): 0.0,
    (2, "attn"): 1.0,
    (2, "mlp"): 0.0,
}
LEFT = {
    *(f"model.layers.{block}.self_attn.{letter}_proj" for block in (0, 2) for letter in "qkvo"),
    *(f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")),
}  # fmt: skip


@pytest.fixture
def emptied(
    done: Callable[..., Any], text_options: tuple[str, ...], report: Path, edit_json: Callable[..., None]
) -> Path:
    """EMPTIED, a folder with a model whose shares are `SHARES`, by a plan edited by hand."""
    ratio = ("--allocator", "uniform", "--prune-ratio", "0.5")
    done("allocate", report, *ratio, "-o", "shares.json", "--quiet")

    def edit(plan: Any) -> None:
        for budget in plan["budgets"]:
            part = "attn" if "self_attn" in budget["name"] else "mlp"
            budget["value"] = SHARES[int(budget["block"][-1]), part]

    edit_json(Path("shares.json"), edit)
    compress = ("compress", "model", "--plan", "shares.json", *text_options, *STRUCTURED, "--allow-empty")
    done(*compress, "-o", "EMPTIED", "--quiet")
    return Path("EMPTIED")


def tensors(folder: str | Path) -> dict[str, Tensor]:
    found = load_file(Path(folder) / WEIGHTS).items()
    return {name.removesuffix(".weight"): t for name, t in found if ".layers." in name and t.ndim == 2}


def result_of(folder: str) -> Any:
    return json.loads((Path(folder) / "result.json").read_text())


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.arange(3, 60)[None]).logits
    return found


def check_loads(folder: str) -> None:
    """Plain transformers and our own loader give one model, which generates with and without cache alike."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    assert torch.isfinite(logits(model)).all()
    assert torch.equal(logits(model), logits(load(folder).model))
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    ids = torch.arange(3, 9)[None]
    with_cache, without = (model.generate(ids, use_cache=cached, **options) for cached in (True, False))
    assert torch.equal(with_cache, without)
    assert with_cache.shape == (1, 14)


def test_what_has_no_weights_left_is_in_no_report_and_no_plan(
    done: Callable[..., Any], emptied: Path, text_options: tuple[str, ...]
) -> None:
    assert {name for name, tensor in tensors(emptied).items() if tensor.numel()} == LEFT
    report = done("measure", emptied, *text_options, "-o", "again.json", "--json", "--quiet").json
    assert {linear["name"] for block in report["blocks"] for linear in block["linears"]} == LEFT
    assert [block["name"] for block in report["blocks"]] == ["model.layers.0", "model.layers.2"]
    (note,) = report["notes"]
    assert "get no budget: 10," in note
    plan = done("allocate", "again.json", "--sparsity", "0.5", "-o", "p.json", "--json", "--quiet").json
    assert {budget["name"] for budget in plan["budgets"]} == LEFT


@pytest.mark.parametrize("importance", ["wanda", "taylor", "magnitude", "random"])
def test_removing_again(
    done: Callable[..., Any], emptied: Path, text_options: tuple[str, ...], importance: str
) -> None:
    before = tensors(emptied)
    run = ("run", emptied, *text_options, *STRUCTURED, "--prune-ratio", "0.3", "--importance", importance)
    result = done(*run, "-o", "TWICE", "--json", "--quiet").json
    after = tensors("TWICE")
    assert after.keys() == before.keys()
    assert {name for name, tensor in after.items() if tensor.numel()} == LEFT
    whole, kept = (sum(tensor.numel() for tensor in found.values()) for found in (before, after))
    assert 0.5 * whole < kept <= 0.7 * whole
    assert result["totals"]["achieved"] == pytest.approx(kept / whole)
    rows = [tensor.shape[0] for name, tensor in after.items() if name.endswith(("k_proj", "v_proj"))]
    assert result["footprint"]["after"]["kv_cache_bytes_per_token"] == 4 * sum(rows)
    assert len(result["earlier"]) == 1
    check_loads("TWICE")
    done("run", "TWICE/recipe.yaml", "-o", "AGAIN", "--quiet")
    assert (Path("AGAIN") / WEIGHTS).read_bytes() == (Path("TWICE") / WEIGHTS).read_bytes()


def test_emptying_again_until_one_sublayer_is_left(
    done: Callable[..., Any], emptied: Path, text_options: tuple[str, ...]
) -> None:
    run = ("run", emptied, *text_options, *STRUCTURED, "--allocator", "uniform", "--allow-empty", "--quiet")
    done(*run, "--set", "*.0.mlp.*=1", "--prune-ratio", "0.55", "-o", "TWICE")
    left = {name for name, tensor in tensors("TWICE").items() if tensor.numel()}
    assert left == {name for name in LEFT if "0.mlp" in name}
    check_loads("TWICE")


@pytest.mark.parametrize("backend", ["wanda", "magnitude", "sparsegpt"])
def test_masking(
    done: Callable[..., Any], emptied: Path, text_options: tuple[str, ...], backend: str
) -> None:
    before = tensors(emptied)
    run = ("run", emptied, *text_options, "--backend", backend, "--allocator", "uniform")
    done(*run, "--nm", "2:4", "--data", "other.txt", "-o", "MASKED", "--quiet")
    for name, tensor in tensors("MASKED").items():
        assert tensor.shape == before[name].shape
        assert int(torch.count_nonzero(tensor)) == tensor.numel() // 2
    for pattern in ("plan", "2:4"):
        counted = done("verify", "MASKED", "--pattern", pattern, "--json").json
        assert counted["ok"]
        assert counted["linears"] == len(LEFT)
    check_loads("MASKED")


@pytest.mark.parametrize("backend", ["rtn", "gptq"])
def test_quantizing(
    done: Callable[..., Any], emptied: Path, text_options: tuple[str, ...], backend: str
) -> None:
    run = ("run", emptied, *text_options, "--backend", backend, *BITS, "--quiet")
    done(*run, "-o", "PACKED")
    done(*run, "--format", "dense", "-o", "DENSE")
    assert {row["name"] for row in result_of("PACKED")["budgets"]} == LEFT
    assert torch.equal(logits(load("PACKED").model), logits(load("DENSE").model))
    check_loads("PACKED")
    check_loads("DENSE")


def test_evaluating(done: Callable[..., Any], emptied: Path) -> None:
    record = done("eval", emptied, "--data", "other.txt", "--seq-len", "32", "--json", "--quiet").json
    assert record["n_params"] == sum(t.numel() for t in load_file(emptied / WEIGHTS).values())


def test_one_width_for_blocks_that_lost_different_parts(refused: Callable[..., str], emptied: Path) -> None:
    run = ("run", emptied, "--calib", "text.txt", "--samples", "2", "--seq-len", "16", *STRUCTURED)
    message = refused(*run, "--prune-ratio", "0.3", "--uniform-width", "-o", "OUT")
    assert "model.layers.1.self_attn.q_proj lost its last weight before: drop --uniform-width" in message


def test_a_model_without_any_block_weight_is_refused(
    done: Callable[..., Any],
    refused: Callable[..., str],
    text_options: tuple[str, ...],
    report: Path,
    edit_json: Callable[..., None],
) -> None:
    done("allocate", report, "--allocator", "uniform", "--prune-ratio", "0.5", "-o", "p.json", "--quiet")

    def nothing(plan: Any) -> None:
        for budget in plan["budgets"]:
            budget["value"] = 0.0

    edit_json(Path("p.json"), nothing)
    done(
        "compress",
        "model",
        "--plan",
        "p.json",
        *text_options,
        *STRUCTURED,
        "--allow-empty",
        "-o",
        "NONE",
        "--quiet",
    )
    done("eval", "NONE", "--data", "other.txt", "--seq-len", "32", "--quiet")
    for command in (
        ("measure", "NONE", *text_options, "-o", "again.json"),
        ("run", "NONE", *text_options, "--sparsity", "0.5", "-o", "OUT"),
        ("run", "NONE", *text_options, "--sparsity", "0.5", "--allocator", "uniform", "-o", "OUT"),
    ):
        assert "nothing is left" in refused(*command)
