"""The command line, run in this process in a folder of its own, on a tiny model and a short text."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from owl_compress.cli import _exit_code

TEXT_OPTIONS = ("--calib", "text.txt", "--samples", "4", "--seq-len", "32")


@dataclass(frozen=True)
class Outcome:
    """What a command left on the streams, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON value on stdout."""
        return json.loads(self.out)


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder below `folder`, hidden ones too, with the sha256 of what files hold."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def save_llama(here: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., None]:
    """A function that saves a Llama like `model` with some sizes changed: always the same."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_key_value_heads": 2}

    def save(name: str, **changes: int) -> None:
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **{"num_attention_heads": 4} | sizes | changes,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            LlamaForCausalLM(config).save_pretrained(here / name)
        tokenizer.save_pretrained(here / name)

    return save


@pytest.fixture
def cli(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """A function that runs one command line in `here`."""

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        code = _exit_code([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def done(cli: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """A function that runs a command line which must succeed."""

    def run(*arguments: str | Path) -> Outcome:
        outcome = cli(*arguments)
        assert outcome.code == 0, outcome.err
        return outcome

    return run


@pytest.fixture
def refused(cli: Callable[..., Outcome], here: Path) -> Callable[..., str]:
    """A function that runs a command line which must be refused, and returns the message.

    One line on stderr, nothing on stdout, exit code 2, and not one file changed, added or lost.
    """

    def run(*arguments: str | Path) -> str:
        before = contents(here)
        outcome = cli(*arguments, "--quiet")
        assert outcome.code == 2, outcome.err
        assert outcome.out == ""
        assert contents(here) == before
        (line,) = outcome.err.splitlines()
        assert line.startswith("owl-compress: ")
        assert len(line) < 400
        return line.removeprefix("owl-compress: ")

    return run


@pytest.fixture
def run_options() -> tuple[str, ...]:
    """`run` on the tiny model at 60 %, all but the output."""
    return ("run", "model", *TEXT_OPTIONS, "--sparsity", "0.6")


@pytest.fixture
def text_options() -> tuple[str, ...]:
    """Four sequences of 32 tokens."""
    return TEXT_OPTIONS


@pytest.fixture
def prune(text_options: tuple[str, ...]) -> tuple[str, ...]:
    """`run` on the tiny model with 40 % of its heads and channels removed, all but the output."""
    options = ("--backend", "structured", "--round-to", "8", "--prune-ratio", "0.4", "--quiet")
    return ("run", "model", *text_options, *options)


@pytest.fixture
def report(done: Callable[..., Outcome], here: Path) -> Path:
    """A report of the tiny model."""
    done("measure", "model", *TEXT_OPTIONS, "-o", "report.json", "--quiet")
    return here / "report.json"


@pytest.fixture
def bad(done: Callable[..., Outcome], report: Path, here: Path, edit_json: Callable[..., None]) -> Path:
    """A plan at 4:8 with one block nearly emptied in favour of another."""
    done("allocate", "report.json", "--allocator", "uniform", "--nm", "4:8", "-o", "bad.json", "--quiet")

    def spoil(content: Any) -> None:
        for budget in content["budgets"]:
            level = {"model.layers.0": 0.125, "model.layers.1": 0.875}.get(budget["block"], budget["value"])
            budget["value"] = level

    edit_json(here / "bad.json", spoil)
    return here / "bad.json"


@pytest.fixture
def profile(report: Path, here: Path) -> Path:
    """A sensitivity profile of the tiny model by block, as if unstructured pruning had been measured."""
    measured = json.loads(report.read_text())
    text = {"source": "text.txt", "token_ids_sha256": "0", "sequences": 1, "seq_len": 8, "sampling": "first"}
    parts = [
        {
            "name": block["name"], "kind": "block", "block": block["name"], "n_weights": block["n_weights"],
            "linears": [linear["name"] for linear in block["linears"]],
            "levels": [0.2, 0.5, 1.0], "damage": [2.0 + index, 0.5, 0.0],
        }
        for index, block in enumerate(measured["blocks"])
    ]  # fmt: skip
    linears = [
        {key: linear[key] for key in ("name", "role", "shape")} | {"block": block["name"]}
        for block in measured["blocks"]
        for linear in block["linears"]
    ]
    content = {
        "schema": "owl-compress/sensitivity/1", "model": measured["model"], "unit": "density",
        "backend": {"name": "wanda"}, "measure": "kl", "linears": linears, "parts": parts, "statistics": None,
        "damage_text": text | {"seed": 0, "bos": "never"}, "forward_tokens": 0, "versions": {},
    }  # fmt: skip
    (here / "sensitivity.json").write_text(json.dumps(content))
    return here / "sensitivity.json"


@pytest.fixture
def plan(done: Callable[..., Outcome], report: Path, here: Path) -> Path:
    """A plan for the tiny model, at 60 %."""
    done("allocate", "report.json", "--sparsity", "0.6", "-o", "plan.json", "--quiet")
    return here / "plan.json"


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """A function that changes a JSON file by hand: `edit(path, change)`, where `change` gets its content."""

    def edit(path: Path, change: Callable[[Any], None]) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit
