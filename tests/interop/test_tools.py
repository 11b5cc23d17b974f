"""The other tools for real, in an environment of their own: what each did with our plan is counted."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from owl_compress.cli import _exit_code

pytestmark = [
    pytest.mark.interop,
    # What the packages below warn about is none of ours here.
    pytest.mark.filterwarnings("ignore"),
]

LENGTH, N_WINDOWS = 64, 8
TEXT = ("--calib", "text.txt", "--samples", str(N_WINDOWS), "--seq-len", str(LENGTH), "--quiet")


@pytest.fixture
def folder(here: Path, tokenizer: Any) -> Path:
    """A Llama whose linears every tool takes, and its report."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(here / "model")
    tokenizer.save_pretrained(here / "model")
    assert _exit_code(["measure", "model", *TEXT, "-o", "report.json"]) == 0
    return here


@pytest.fixture
def exported(folder: Path) -> Callable[..., tuple[dict[str, float], Path]]:
    """A function that allocates, and writes the plan for a tool: budgets by linear, and the file."""

    def write(tool: str, allocation: tuple[str, ...], *options: str) -> tuple[dict[str, float], Path]:
        file = folder / ("recipe.yaml" if tool in {"llm-compressor", "modelopt"} else "file.json")
        done = _exit_code(["allocate", "report.json", *allocation, "-o", "plan.json", "--quiet"])
        done = done or _exit_code(["export", "plan.json", "--to", tool, *options, "-o", str(file), "--quiet"])
        assert done == 0
        plan = json.loads((folder / "plan.json").read_text())
        return {row["name"]: row["value"] for row in plan["budgets"]}, file

    return write


def _model() -> Any:
    return AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)


def _windows() -> list[list[int]]:
    ids = AutoTokenizer.from_pretrained("model")(Path("text.txt").read_text())["input_ids"]
    return [ids[at : at + LENGTH] for at in range(0, LENGTH * N_WINDOWS, LENGTH)]


class TestLlmCompressor:
    DENSITIES = (
        ("--allocator", "owl", "--sparsity", "0.6", "--lam", "0.1"),
        ("--allocator", "owl", "--sparsity", "0.6", "--lam", "0.1", "--granularity", "linear"),
        ("--allocator", "linear-depth", "--sparsity", "0.5", "--skip", "model.layers.1.self_attn.q_proj"),
        ("--allocator", "linear-depth", "--nm", "4:8", "--lam", "1"),
    )

    @pytest.mark.parametrize("allocation", DENSITIES)
    @pytest.mark.parametrize("modifier", ["sparsegpt", "wanda"])
    def test_densities(self, exported: Any, allocation: tuple[str, ...], modifier: str) -> None:
        plan, file = exported("llm-compressor", allocation, "--modifier", modifier)
        model = self.carried_out(file)
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                kept = float((module.weight != 0).float().mean())
                # Each row, or the columns of a block, keeps a whole number of weights.
                assert kept == pytest.approx(plan.get(name, 1.0), abs=1 / 64)
                assert (kept == 1) == (plan.get(name, 1.0) == 1)

    def test_bits(self, exported: Any) -> None:
        allocation = ("--allocator", "linear-depth", "--bits", "3", "--lam", "1")
        plan, file = exported("llm-compressor", allocation, "--group-size", "32")
        model = self.carried_out(file)
        for name, bits in plan.items():
            scheme = model.get_submodule(name).quantization_scheme.weights
            assert (scheme.num_bits, scheme.group_size) == (bits, 32)

    @staticmethod
    def carried_out(recipe: Path) -> Any:
        llmcompressor = pytest.importorskip("llmcompressor")
        from datasets import Dataset

        rows = _windows()
        data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * LENGTH for _ in rows]})
        model = _model()
        llmcompressor.oneshot(
            model=model, recipe=str(recipe), dataset=data, num_calibration_samples=len(rows),
            max_seq_length=LENGTH, tokenizer=AutoTokenizer.from_pretrained("model"),
        )  # fmt: skip
        return model


def test_auto_round_takes_the_bits_of_every_linear(exported: Any) -> None:
    auto_round = pytest.importorskip("auto_round")
    allocation = ("--allocator", "linear-depth", "--bits", "3", "--lam", "1")
    plan, file = exported("auto-round", allocation, "--group-size", "32")
    data = [torch.tensor([row]) for row in _windows()]
    rounding = auto_round.AutoRound(
        _model(), AutoTokenizer.from_pretrained("model"), iters=2, nsamples=len(data), seqlen=LENGTH,
        batch_size=4, dataset=data, device_map="cpu", **json.loads(file.read_text()),
    )  # fmt: skip
    _, layers = rounding.quantize()
    assert {name: layers[name]["bits"] for name in plan} == plan


def test_torch_pruning_removes_the_share_of_every_linear(folder: Path, exported: Any) -> None:
    """Of the projections into the FFN: it looks for heads by itself, and never removes one for keys."""
    pytest.importorskip("torch_pruning")
    allocation = (
        "--allocator",
        "linear-depth",
        "--prune-ratio",
        "0.3",
        "--lam",
        "0.1",
        "--skip",
        "*.self_attn*",
    )
    plan, _ = exported("torch-pruning", allocation)
    code = """
import json, torch, torch_pruning
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32).eval()
mlp = model.model.layers[0].mlp
ratios = json.load(open("file.json"))
widths = {}
for place, layer in enumerate(model.model.layers):
    here = {name: ratio for name, ratio in ratios.items() if name.startswith(f"model.layers.{place}.")}
    of_module = {model.get_submodule(name): ratio for name, ratio in here.items()}
    torch_pruning.pruner.BasePruner(
        layer.mlp, example_inputs=torch.randn(1, 4, 64), pruning_ratio=0.0, pruning_ratio_dict=of_module,
        importance=torch_pruning.importance.MagnitudeImportance(p=2), ignored_layers=[layer.mlp.down_proj],
    ).step()
    widths |= {name: model.get_submodule(name).out_features for name in here}
print(json.dumps(widths))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    widths = json.loads(done.stdout.splitlines()[-1])
    assert widths
    assert {name: width / 128 for name, width in widths.items()} == pytest.approx(
        {name: plan[name] for name in widths}, abs=1 / 128
    )
