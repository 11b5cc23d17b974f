"""Everything to type on the page of other tools, run as it stands there, and what each tool made of it."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from owl_compress.cli import _exit_code

# What the packages below warn about is none of ours here.
pytestmark = pytest.mark.filterwarnings("ignore")

PAGE = (Path(__file__).parents[2] / "docs" / "exchange.md").read_text(encoding="utf-8")
LENGTH, N_WINDOWS = 64, 8
BITS = ("--bits", "3", "--lam", "1", "--allocator", "linear-depth")
BIT_WIDTHS_OF_MLX = ("--bits", "4", "--bit-choices", "3,4,6", "--lam", "1", "--allocator", "linear-depth")
DENSITY = ("--sparsity", "0.5", "--allocator", "owl")
WIDTH = ("--prune-ratio", "0.3", "--lam", "0.1", "--allocator", "linear-depth", "--skip", "*.self_attn*")


def section(title: str) -> str:
    """The text under a heading; that before the first one without a title."""
    return (f"## \n{PAGE}" if not title else PAGE).partition(f"## {title}\n")[2].partition("\n## ")[0]


def snippets(language: str, title: str) -> list[str]:
    """The code blocks of a language in a section."""
    return re.findall(rf"^```{language}\n(.*?)^```", section(title), re.M | re.S)


@pytest.fixture(autouse=True)
def workplace(measured: Callable[..., None]) -> None:
    """The working folder holds `MODEL` and `report.json`."""
    measured()


def typed(title: str) -> list[list[str]]:
    """The commands of ours in a section, as words."""
    lines = "".join(snippets("sh", title)).splitlines()
    return [shlex.split(line) for line in lines if line.startswith("owl-compress ")]


def type_in(title: str) -> None:
    """Run the commands of ours in a section, in their order."""
    assert typed(title)
    for words in typed(title):
        assert _exit_code([*words[1:], "--quiet"]) == 0, words


def run(title: str, **names: Any) -> dict[str, Any]:
    """Run the Python of a section, in which these names are known; the names that it leaves."""
    (code,) = snippets("python", title)
    exec(compile(code, title, "exec", dont_inherit=True), names)
    return names


def model() -> Any:
    return AutoModelForCausalLM.from_pretrained("MODEL", dtype=torch.float32).eval()


def windows() -> list[list[int]]:
    ids = AutoTokenizer.from_pretrained("MODEL")(Path("text.txt").read_text())["input_ids"]
    return [ids[at : at + LENGTH] for at in range(0, LENGTH * N_WINDOWS, LENGTH)]


class TestCommands:
    """What needs no other tool."""

    def test_of_the_top(self, allocated: Any) -> None:
        plan = allocated(*DENSITY)
        type_in("")
        budgets = json.loads(Path("plan.json").read_text())["budgets"]
        assert {row["name"]: row["value"] for row in budgets} == pytest.approx(plan)

    def test_of_llama_cpp(self, allocated: Any) -> None:
        """Names and types are those of the package gguf; llama-quantize itself is not at hand."""
        gguf = pytest.importorskip("gguf")
        plan = allocated(*BITS)
        type_in("llama.cpp")
        (quantize,) = (
            line for line in snippets("sh", "llama.cpp")[0].splitlines() if line.startswith("llama-quantize")
        )
        assert shlex.split(quantize)[1:3] == ["--tensor-type-file", "types.txt"]
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
        known = {kind.name.lower() for kind in gguf.GGMLQuantizationType}
        lines = dict(line.split("=") for line in Path("types.txt").read_text().splitlines())
        assert lines.keys() == {
            f"^{re.escape(names.get_name(f'{name}.weight', try_suffixes=('.weight',)))}$" for name in plan
        }
        assert set(lines.values()) <= known

    def test_of_evopress(self) -> None:
        names = [row["name"] for block in _report()["blocks"] for row in block["linears"]]
        Path("evo-kl-configuration-3.0.txt").write_text("".join(f"{name}: 3\n" for name in names))
        Path("levels.txt").write_text("".join(f"{name}: 0\n" for name in names))
        type_in("EvoPress")
        plan = json.loads(Path("plan.json").read_text())
        assert [row["value"] for row in plan["budgets"]] == pytest.approx([0.3] * len(names))

    def test_of_tables(self, allocated: Any) -> None:
        plan = allocated(*DENSITY)
        type_in("A table of one's own")
        budgets = json.loads(Path("plan.json").read_text())["budgets"]
        assert {row["name"]: row["value"] for row in budgets} == pytest.approx(plan)


def _report() -> Any:
    return json.loads(Path("report.json").read_text())


@pytest.mark.interop
class TestTools:
    """What has the tools at work."""

    @pytest.mark.parametrize("budget", [DENSITY, BITS])
    def test_llm_compressor(self, allocated: Any, budget: tuple[str, ...]) -> None:
        pytest.importorskip("llmcompressor")
        from datasets import Dataset

        plan = allocated(*budget)
        type_in("llm-compressor")
        rows = windows()
        dataset = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * LENGTH for _ in rows]})
        made = run("llm-compressor", model=model(), dataset=dataset)["model"]
        for name, value in plan.items():
            module = made.get_submodule(name)
            if budget is BITS:
                assert module.quantization_scheme.weights.num_bits == value
            else:
                assert float((module.weight != 0).float().mean()) == pytest.approx(value, abs=1 / 64)

    def test_auto_round(self, allocated: Any) -> None:
        pytest.importorskip("auto_round")
        plan = allocated(*BITS)
        type_in("AutoRound")
        run("AutoRound", model=model(), tokenizer=AutoTokenizer.from_pretrained("MODEL"))
        asked = json.loads(Path("config.json").read_text())["layer_config"]
        assert {name: asked[name]["bits"] for name in plan} == plan

    def test_torch_pruning(self, allocated: Any) -> None:
        pytest.importorskip("torch_pruning")
        plan = allocated(*WIDTH)
        type_in("Torch-Pruning")
        made = run("Torch-Pruning", model=model())["model"]
        for name, value in plan.items():
            width = made.get_submodule(name).out_features / (128 if name.endswith("down_proj") else 256)
            assert width == pytest.approx(1 if name.endswith("down_proj") else value, abs=1 / 256), name

    def test_mlx(self, allocated: Any) -> None:
        pytest.importorskip("mlx_lm")
        import mlx.core as mx

        plan = allocated(*BIT_WIDTHS_OF_MLX)
        type_in("MLX")
        run("MLX")
        saved = mx.load("mlx_model/model.safetensors")
        table = json.loads(Path("mlx_model/config.json").read_text())["quantization"]
        for name, bits in plan.items():
            n_inputs = 64 * saved[f"{name}.scales"].shape[1]
            assert 32 * saved[f"{name}.weight"].shape[1] == n_inputs * bits, name
            assert table[name]["bits"] == bits
        assert "model.embed_tokens.scales" not in saved
        assert {name.removesuffix(".scales") for name in saved if name.endswith(".scales")} == set(plan)

    def test_model_optimizer(self, allocated: Any) -> None:
        pytest.importorskip("modelopt")
        plan = allocated(*BITS)
        type_in("Model Optimizer")
        whole = model()
        dense = {name: whole.get_submodule(name).weight.detach().clone() for name in plan}
        ids = torch.tensor(windows()[:2])
        run("Model Optimizer", model=whole, forward_loop=lambda one: one(ids))
        for name, module in whole.named_modules():
            quantizer = getattr(module, "weight_quantizer", None)
            if quantizer is None:
                continue
            assert quantizer.is_enabled == (name in plan), name
            if name in plan:
                assert quantizer.num_bits == plan[name]
                groups = quantizer(dense[name]).reshape(-1, 64)  # [groups, inputs of a group]
                assert max(len(group.unique()) for group in groups) <= 2 ** plan[name]
        assert sum(isinstance(module, nn.Linear) for module in whole.modules())
