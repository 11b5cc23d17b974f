"""What becomes of a narrowed model: one that is narrower still, masked, quantized, or a DeciLM."""

import json
import re
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
BITS = ("--bits", "4", "--bit-choices", "4", "--group-size", "8", "--quiet")


@pytest.fixture
def again(text_options: tuple[str, ...]) -> tuple[str, ...]:
    """`run` on the narrowed OUT, all but budget, backend and output."""
    return ("run", "OUT", *text_options)


@pytest.fixture
def narrowed(done: Callable[..., Any], prune: tuple[str, ...]) -> Any:
    """The result of narrowing `model` into OUT."""
    return done(*prune, "-o", "OUT", "--json").json


def linears(folder: str) -> dict[str, Tensor]:
    found = load_file(Path(folder) / WEIGHTS).items()
    return {name.removesuffix(".weight"): t for name, t in found if ".layers." in name and t.ndim == 2}


def result_of(folder: str) -> Any:
    return json.loads((Path(folder) / "result.json").read_text())


def plainly(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.arange(3, 60)[None]).logits
    return found


def check_loads(folder: str) -> None:
    """Plain transformers, the lines of the card and our own loader give one model."""
    model = plainly(folder)
    assert torch.isfinite(logits(model)).all()
    assert torch.equal(logits(model), logits(load(folder).model))
    card = (Path(folder) / "README.md").read_text()
    lines, *_ = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(lines.replace("path/to/this/folder", folder), names)
    assert torch.equal(logits(model), logits(names["model"]))
    ids = torch.arange(3, 9)[None]
    assert model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False).shape == (1, 10)


def check_names_both_steps(folder: str, narrowed: Any) -> None:
    """Result and card tell of the first step as its own result did."""
    (step,) = result_of(folder)["earlier"]
    assert (step["model"], step["backend"], step["unit"]) == ("model", "structured", "width")
    assert step["achieved"] == narrowed["totals"]["achieved"]
    assert step["n_params_before"] == narrowed["totals"]["n_params_before"]
    assert step["n_params_after"] == narrowed["totals"]["n_params_after"]
    card = (Path(folder) / "README.md").read_text()
    (section,) = re.findall(r"## Compressed before\n(.*?)\n## ", card, flags=re.DOTALL)
    assert f"{narrowed['totals']['n_params_after']:,}" in section
    assert f"**{result_of(folder)['backend']['name']}**" in card


def test_removing_again_takes_its_share_of_what_is_left(
    done: Callable[..., Any], prune: tuple[str, ...], narrowed: Any
) -> None:
    done("run", "OUT", *prune[2:], "-o", "TWICE")
    before, after = linears("OUT"), linears("TWICE")
    n_before, n_after = (sum(t.numel() for t in found.values()) for found in (before, after))
    assert n_after <= 0.6 * n_before < 0.6 * sum(t.numel() for t in linears("model").values())
    result = result_of("TWICE")
    assert {row["name"]: row["n_weights"] for row in result["budgets"]} == {
        name: tensor.numel() for name, tensor in before.items()
    }
    assert result["totals"]["achieved"] == pytest.approx(n_after / n_before)
    assert result["footprint"]["before"] == narrowed["footprint"]["after"]
    check_names_both_steps("TWICE", narrowed)
    check_loads("TWICE")
    done("run", "TWICE", *prune[2:-1], "--prune-ratio", "0.2", "--round-to", "4", "-o", "THRICE", "--quiet")
    assert [step["model"] for step in result_of("THRICE")["earlier"]] == ["model", "OUT"]


def test_masking_a_narrowed_model(done: Callable[..., Any], again: tuple[str, ...], narrowed: Any) -> None:
    done(
        *again, "--sparsity", "0.5", "--backend", "wanda", "--allocator", "uniform", "-o", "MASKED", "--quiet"
    )
    before = linears("OUT")
    for name, tensor in linears("MASKED").items():
        assert tensor.shape == before[name].shape
        assert int(torch.count_nonzero(tensor)) == tensor.numel() // 2
    check_names_both_steps("MASKED", narrowed)
    check_loads("MASKED")


@pytest.mark.parametrize("backend", ["rtn", "gptq"])
def test_quantizing_a_narrowed_model(
    done: Callable[..., Any], again: tuple[str, ...], narrowed: Any, backend: str
) -> None:
    done(*again, *BITS, "--backend", backend, "-o", "PACKED")
    done(*again, *BITS, "--backend", backend, "--format", "dense", "-o", "DENSE")
    assert torch.equal(logits(plainly("PACKED")), logits(plainly("DENSE")))
    assert (Path("PACKED") / WEIGHTS).stat().st_size < (Path("DENSE") / WEIGHTS).stat().st_size
    for folder in ("PACKED", "DENSE"):
        check_names_both_steps(folder, narrowed)
        check_loads(folder)


def test_narrowing_a_packed_model(
    done: Callable[..., Any], prune: tuple[str, ...], text_options: tuple[str, ...]
) -> None:
    done("run", "model", *text_options, *BITS, "--backend", "rtn", "-o", "PACKED")
    done("run", "PACKED", *prune[2:], "-o", "NARROW")
    assert "quantization_config" not in json.loads(Path("NARROW/config.json").read_text())
    assert [step["unit"] for step in result_of("NARROW")["earlier"]] == ["bits"]
    check_loads("NARROW")


def test_decilm_has_the_widths_of_every_block(
    done: Callable[..., Any],
    text_options: tuple[str, ...],
    save_llama: Callable[..., None],
) -> None:
    save_llama("wide", intermediate_size=1024)
    run = ("run", "wide", *text_options, "--backend", "structured", "--prune-ratio", "0.4", "--quiet")
    done(*run, "--parts", "mlp", "--lam", "0.3", "--export", "decilm", "-o", "OUT")
    config = json.loads(Path("OUT/config.json").read_text())
    assert config["architectures"] == ["DeciLMForCausalLM"]
    after = linears("OUT")
    widths = []
    for block, described in enumerate(config["block_configs"]):
        # the formula of its readers: two thirds of the multiple of the hidden size, rounded up to 256
        wanted = int(2 * described["ffn"]["ffn_mult"] * 32 / 3)
        widths.append(-(-wanted // 256) * 256)
        assert after[f"model.layers.{block}.mlp.up_proj"].shape == (widths[-1], 32)
        assert described["attention"]["n_heads_in_group"] == 2
    assert len(set(widths)) > 1
    assert sum(widths) <= 0.6 * 3 * 1024
    done("run", "OUT/recipe.yaml", "-o", "AGAIN", "--quiet")
    assert (Path("AGAIN") / WEIGHTS).read_bytes() == (Path("OUT") / WEIGHTS).read_bytes()
