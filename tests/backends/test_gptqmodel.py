"""The backend gptqmodel without that package: its rules, its codes, and the line on a stand-in for it."""

import importlib.machinery
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from owl_compress.backends.gptqmodel import GptqModel, dynamic_rules, read_codes
from owl_compress.cli import _exit_code
from owl_compress.compression.contract import CheckpointBackend
from owl_compress.documents.plan import Plan
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.models.structure import find_structure
from owl_compress.pipeline.stages import compress_

PlanFor = Callable[..., Plan]


def packed(numbers: Tensor, bits: int) -> Tensor:
    """Unsigned numbers [in, out] as words [in * bits / 32, out], one long integer for each output."""
    columns = []
    for column in numbers.t().tolist():
        whole = sum(number << (bits * place) for place, number in enumerate(column))
        words = [(whole >> (32 * word)) & 0xFFFFFFFF for word in range(len(column) * bits // 32)]
        columns.append([word - 2**32 if word >= 2**31 else word for word in words])
    return torch.tensor(columns, dtype=torch.int32).t().contiguous()


class StandIn:
    """Rounds to nearest, and writes what GPTQModel would; `seen` is what it was given."""

    seen: SimpleNamespace

    @classmethod
    def load(cls, folder: str, config: dict[str, Any], **options: Any) -> "StandIn":
        print("a lot of talk")  # noqa: T201 - as the real one does
        model = cls()
        cls.seen = model.own = SimpleNamespace(folder=Path(folder), config=config, options=options)
        return model

    def quantize(self, examples: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        self.own.examples = examples
        row = {"layer": 0, "module": "mlp.up_proj", "damp": "0.02000", "time": "0.5"}
        return {"gptq": [row]}

    def save(self, out: str) -> None:
        tensors = load_file(self.own.folder / "model.safetensors")
        for name in [key.removesuffix(".weight") for key in tensors if "proj" in key]:
            rules = (rule for pattern, rule in self.own.config["dynamic"].items() if re.match(pattern, name))
            tensors |= self._quantized(name, tensors.pop(f"{name}.weight"), next(rules)["bits"])
        save_file(tensors, Path(out) / "model.safetensors")
        shutil.copy(self.own.folder / "config.json", out)

    def _quantized(self, name: str, weight: Tensor, bits: int) -> dict[str, Tensor]:
        size, middle = self.own.config["group_size"], 2 ** (bits - 1)
        groups = weight.reshape(len(weight), -1, size)
        scales = (groups.abs().amax(dim=2) / (middle - 0.5)).half()  # [out, groups]
        codes = (groups / scales.float()[:, :, None]).round().clamp(-middle, middle - 1).reshape(weight.shape)
        return {
            f"{name}.qweight": packed((codes.t() + middle).long(), bits),
            f"{name}.g_idx": (torch.arange(weight.shape[1]) // size).int(),
            f"{name}.scales": scales.t().contiguous(),
        }


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    """The package gptqmodel, as far as the backend uses it."""
    module = ModuleType("gptqmodel")
    module.__spec__ = importlib.machinery.ModuleSpec("gptqmodel", None)
    module.__dict__.update(GPTQModel=StandIn, QuantizeConfig=dict)
    monkeypatch.setitem(sys.modules, "gptqmodel", module)
    return StandIn


@pytest.fixture
def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_llama: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> Callable[..., int]:
    """A function that runs the whole line at 3 bits on the tiny model, in a folder of its own."""
    tiny_llama.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(" ".join(f"owl{number:04d}" for number in range(500)))
    monkeypatch.chdir(tmp_path)
    words = "run model --backend gptqmodel --bits 3 --group-size 32 --calib text.txt --samples 4 --seq-len 32"

    def line(*more: str) -> int:
        return _exit_code([*words.split(), "--data", "text.txt", "-o", "OUT", "--quiet", "--json", *more])

    return line


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_come_back_from_words(tmp_path: Path, bits: int) -> None:
    numbers = torch.randint(0, 2**bits, (64, 5), generator=torch.Generator().manual_seed(bits))
    tensors = {
        "it.qweight": packed(numbers, bits),
        "it.g_idx": (torch.arange(64) // 32).int(),
        "it.scales": torch.ones(2, 5, dtype=torch.float16),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    quantized = read_codes(tmp_path, "it", 32)
    assert quantized.bits == bits
    assert torch.equal(quantized.codes.long() + 2 ** (bits - 1), numbers.t())
    with pytest.raises(ValueError, match="groups are not None consecutive"):
        read_codes(tmp_path, "it", None)


def test_each_linear_has_one_rule_and_fused_names_only_where_the_parts_agree(
    tiny_llama: LlamaForCausalLM, plan_for: PlanFor
) -> None:
    names = [linear.name for linear in find_structure(tiny_llama).linears]
    widths = {name: 4.0 if "layers.0" in name else 2.0 for name in names}
    widths["model.layers.1.self_attn.v_proj"] = 3.0
    skipped = ("model.layers.2.mlp.down_proj",)
    rules = dynamic_rules(plan_for(tiny_llama, widths, unit=Unit.BITS, skipped=skipped))
    for name in names:
        matching = [rule for key, rule in rules.items() if re.match(key.removeprefix("-:"), name)]
        assert matching == ([{}] if name in skipped else [{"bits": widths[name]}])
    assert rules[r"^model\.layers\.0\.self_attn\.qkv_proj$"] == {"bits": 4}
    assert not any(re.match(key, "model.layers.1.self_attn.qkv_proj") for key in rules)
    assert rules[r"^model\.layers\.1\.mlp\.gate_up_proj$"] == {"bits": 2}


def test_the_whole_line(
    run: Callable[..., int], stand_in: type[StandIn], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    streams = capsys.readouterr()
    result = json.loads(streams.out)
    assert streams.err == ""
    saved = load_file("OUT/model.safetensors")
    for row in result["budgets"]:
        n_inputs = len(saved[f"{row['name']}.g_idx"])
        assert row["achieved"] == 32 * len(saved[f"{row['name']}.qweight"]) / n_inputs == row["asked"]
        assert 0 < row["relative_error"] < {2: 0.5, 3: 0.1, 4: 0.02}[row["asked"]]
    assert len({row["asked"] for row in result["budgets"]}) > 1
    assert result["totals"]["achieved"] <= 3
    assert result["totals"]["bytes_on_disk"] == Path("OUT/model.safetensors").stat().st_size
    assert result["evaluation"]["compressed"]["perplexity"] != result["evaluation"]["dense"]["perplexity"]
    (fallback,) = result["fallbacks"]
    assert fallback["what"] == "damping raised to 0.02"
    files = {path.name for path in Path("OUT").iterdir()}
    assert files >= {"result.json", "plan.json", "report.json", "recipe.yaml", "README.md"}
    assert ".dense" not in files
    assert "GPTQModel.load(" in Path("OUT/README.md").read_text()
    seen = stand_in.seen
    assert [len(example["input_ids"]) for example in seen.examples] == [32] * 4
    expected = {"sym": True, "desc_act": False, "act_group_aware": True, "damp_percent": 0.01, "bits": 4}
    assert expected.items() <= seen.config.items()


def test_a_recipe_of_it_runs_again(run: Callable[..., int], stand_in: type[StandIn]) -> None:
    assert run() == 0
    assert _exit_code(["run", "OUT/recipe.yaml", "-o", "AGAIN", "--quiet"]) == 0
    first, second = (Path(folder, "model.safetensors").read_bytes() for folder in ("OUT", "AGAIN"))
    assert first == second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "backend 'gptqmodel' needs the package gptqmodel: pip install 'owl-compress[gptqmodel]' (it n"),
        (("--format", "packed"), "backend 'gptqmodel' writes a format of its own: drop --format"),
        (("--group-size", "48"), "group_size 48 is no multiple of 32"),
        (("--asymmetric",), "backend 'gptqmodel' takes no asymmetric"),
    ],
)
def test_refused_in_one_line_before_any_work(
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(*options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path("OUT").exists()


def test_what_it_cannot_carry_out(
    tiny_llama: LlamaForCausalLM, plan_for: PlanFor, stand_in: type[StandIn]
) -> None:
    backend = GptqModel()
    assert isinstance(backend, CheckpointBackend)
    with pytest.raises(RequestError, match="has 5 bits, and GPTQModel's format is read at 2, 3, 4, 8 bits"):
        backend.check_ready(plan_for(tiny_llama, 5.0, unit=Unit.BITS))
    with pytest.raises(RequestError, match="writes a checkpoint of its own and compresses no model in mem"):
        compress_(tiny_llama, plan_for(tiny_llama, 4.0, unit=Unit.BITS), "gptqmodel")
    with pytest.raises(ValueError, match="damping 0 is outside"):
        GptqModel(damping=0)
