"""The backend autoround without that package: its rules, and the line on a stand-in for it."""

import importlib.machinery
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from owl_compress.cli import _exit_code

DOWN = "model.layers.1.mlp.down_proj"


class StandIn:
    """Rounds to nearest as the package does, with scales of either sign; `seen` is what it was given."""

    seen: ClassVar[dict[str, Any]]
    fault: ClassVar[BaseException | str | None] = None

    def __init__(self, model: nn.Module, tokenizer: Any, **settings: Any) -> None:
        print("a lot of talk")  # noqa: T201 - as the real one does
        random.seed(settings["seed"])
        self.model = model
        type(self).seen = settings

    def quantize(self) -> tuple[nn.Module, dict[str, Any]]:
        if isinstance(self.fault, BaseException):
            raise self.fault
        for name, layer in self.seen["layer_config"].items():
            if layer["bits"] < 16 and (self.fault, name) != ("left alone", DOWN):
                self._round_(self.model.get_submodule(name), layer["bits"], layer["group_size"])
        if self.fault == "no multiples":
            module: Any = self.model.get_submodule(DOWN)
            module.weight.data[3, 5] += module.scale[3, 0] / 2
        return self.model, self.seen["layer_config"]

    def _round_(self, module: nn.Module, bits: int, size: int) -> None:
        weight: Tensor = module.get_parameter("weight").data
        groups = weight.reshape(len(weight), -1, size if size > 0 else weight.shape[1])
        largest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
        scales = largest / -(2 ** (bits - 1))
        codes = (groups / scales).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        weight.copy_((codes * scales).reshape(weight.shape))
        module.scale = scales[:, :, 0]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    """The package auto-round, as far as the backend uses it."""
    module = ModuleType("auto_round")
    module.__spec__ = importlib.machinery.ModuleSpec("auto_round", None)
    module.__dict__["AutoRound"] = StandIn
    monkeypatch.setitem(sys.modules, "auto_round", module)
    return StandIn


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast
) -> Callable[..., int]:
    """A function that runs the whole line at 3 bits on a small model, in a folder of its own."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(" ".join(f"owl{number:04d}" for number in range(200)))
    monkeypatch.chdir(tmp_path)
    words = "run model --backend autoround --bits 3 --group-size 32 --calib text.txt --samples 4 --seq-len 32"

    def line(*more: str) -> int:
        return _exit_code([*words.split(), "-o", "OUT", "--quiet", "--json", *more])

    return line


def test_the_whole_line(
    run: Callable[..., int], stand_in: type[StandIn], capsys: pytest.CaptureFixture[str]
) -> None:
    more = (
        "--allocator",
        "linear-depth",
        "--bit-choices",
        "2,4",
        "--seed",
        "7",
        "--iters",
        "9",
        "--lr",
        "0.05",
    )
    random.seed(1)
    expected = random.Random(1).random()
    assert run(*more, "--lam", "1", "--skip", DOWN, "--data", "text.txt", "--max-windows", "2") == 0
    assert random.random() == expected  # the package's seeding leaves no trace
    streams = capsys.readouterr()
    result = json.loads(streams.out)
    assert streams.err == ""
    assert {row["asked"] for row in result["budgets"]} == {2, 4}
    for row in result["budgets"]:
        assert row["achieved"] == row["asked"]
        assert 0 < row["relative_error"] < {2: 0.5, 4: 0.02}[row["asked"]]
    assert result["totals"]["bytes_on_disk"] == Path("OUT/model.safetensors").stat().st_size
    assert result["evaluation"]["compressed"]["perplexity"] != result["evaluation"]["dense"]["perplexity"]
    files = {path.name for path in Path("OUT").iterdir()}
    assert files >= {"result.json", "plan.json", "recipe.yaml", "README.md"}
    assert ".dense" not in files
    seen = stand_in.seen
    assert seen["layer_config"][DOWN] == {"bits": 16}
    given = {"iters": 9, "lr": 0.05, "seed": 7, "batch_size": 8, "nsamples": 4, "seqlen": 32, "sym": True}
    assert given.items() <= seen.items()
    assert seen["amp"] is False
    assert [tuple(example["input_ids"].shape) for example in seen["dataset"]] == [(1, 32)] * 4


def test_transformers_loads_what_was_evaluated(
    run: Callable[..., int], stand_in: type[StandIn], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    assert _exit_code(["verify", "OUT", "--quiet"]) == 0
    dense, loaded = load_file("model/model.safetensors"), AutoModelForCausalLM.from_pretrained("OUT")
    with torch.no_grad():
        loaded(torch.zeros(1, 2, dtype=torch.long))  # compressed-tensors unpacks on the first pass
    for row in json.loads(capsys.readouterr().out.splitlines()[0])["budgets"]:
        weight, most = dense[f"{row['name']}.weight"], 2 ** (row["asked"] - 1)
        groups = weight.reshape(len(weight), -1, 32)
        scales = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True)) / -most
        rounded = ((groups / scales).round().clamp(-most, most - 1) * scales).reshape(weight.shape)
        assert torch.equal(loaded.get_submodule(row["name"]).weight, rounded)


def test_a_recipe_of_it_runs_again(run: Callable[..., int], stand_in: type[StandIn]) -> None:
    assert run() == 0
    assert _exit_code(["run", "OUT/recipe.yaml", "-o", "AGAIN", "--quiet"]) == 0
    first, second = (Path(folder, "model.safetensors").read_bytes() for folder in ("OUT", "AGAIN"))
    assert first == second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "backend 'autoround' needs the package auto-round: pip install 'owl-compress[autoround]'"),
        (("--format", "packed"), "backend 'autoround' writes a format of its own: drop --format"),
        (("--asymmetric",), "backend 'autoround' takes no asymmetric"),
        (("--iters", "0"), "iters 0 must be at least 1"),
        (("--lr", "2"), "lr 2.0 is outside (0, 1]: it is in codes, and 1 / iters if not given"),
        (("--step-windows", "0"), "step-windows 0 must be at least 1"),
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


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            ValueError("no such\nscheme"),
            "AutoRound does not take this model or plan: no such scheme: use backend 'gptq'",
        ),
        (
            RuntimeError("sizes (8) and (4)"),
            "does not take this model or plan: sizes (8) and (4): use backend",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "out of memory while AutoRound tunes: use fewer --step-windows",
        ),
        (SystemExit(-1), "AutoRound gave this model up without a reason: use backend 'gptq'"),
        ("left alone", f"AutoRound left {DOWN} as it is: leave it out with --skip, or use backend 'gptq'"),
        ("no multiples", f"AutoRound made of {DOWN} no multiples of its scales: calibrate on other text"),
    ],
    ids=["refusal", "defect", "memory", "exit", "left-alone", "no-multiples"],
)
def test_what_the_package_does_not_do_is_told_in_one_line(
    run: Callable[..., int],
    stand_in: type[StandIn],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: BaseException | str,
    message: str,
) -> None:
    monkeypatch.setattr(stand_in, "fault", fault)
    assert run() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path("OUT").exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gpt2", "c_attn is a Conv1D, and only torch.nn.Linear can be packed, and backend 'autoround' stores "
         "nothing else: use backend 'gptq'"),
        ("odd", "model.layers.0.mlp.gate_proj is 48 x 32, and AutoRound leaves linears alone whose sides are "
         "no multiples of 32: leave it out with --skip, or use backend 'gptq'"),
        ("narrow", "backend 'autoround' takes no model with narrowed blocks: use backend 'gptq'"),
    ],
)  # fmt: skip
def test_a_model_that_it_cannot_take_is_refused_before_it_is_tuned(
    run: Callable[..., int],
    stand_in: type[StandIn],
    make_model: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    message: str,
) -> None:
    if kind == "gpt2":
        make_model("gpt2").save_pretrained("model")
    elif kind == "odd":
        config = LlamaConfig.from_pretrained("model", intermediate_size=48)
        LlamaForCausalLM(config).save_pretrained("model")
    else:
        narrow = "run model --backend structured --prune-ratio 0.3 --round-to 8 --calib text.txt --samples 2"
        assert _exit_code([*narrow.split(), "--seq-len", "32", "-o", "narrow", "--quiet"]) == 0
        Path("model").rename("before")
        Path("narrow").rename("model")
    monkeypatch.setattr(stand_in, "fault", AssertionError("it was tuned"))
    capsys.readouterr()
    assert run("--group-size", "none") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
