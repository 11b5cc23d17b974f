"""Folders in every stored form, and the table of `docs/elsewhere.md`, whose rows are tests that passed.

A test that proves who loads what is marked with the consumer and its packages, is parametrized over `output`,
and says in its docstring how it is proven. With --proven its rows are written into the page.
"""

import copy
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from owl_compress.documents.recipe import Recipe
from owl_compress.pipeline.execution import run
from owl_compress.pipeline.recovering import recover
from owl_compress.pipeline.stages import load

STRUCTURED = {"backend": "structured", "prune_ratio": 0.4, "round_to": 8}
FEED_FORWARD = {**STRUCTURED, "round_to": 256, "parts": ("mlp",)}
OUTPUTS: dict[str, dict[str, Any]] = {
    "dense-sparse": {"backend": "wanda", "sparsity": 0.5},
    "with adapter": {"recovered": "dense-sparse"},
    "N:M": {"backend": "wanda", "nm": "4:8"},
    "dequantised": {"backend": "rtn", "bits": 4, "group_size": 32, "format": "dense"},
    "packed": {"backend": "rtn", "bits": 3, "bit_choices": (2, 3, 4), "group_size": 32, "lam": 1.0},
    "packed 4 bits": {"backend": "rtn", "bits": 4, "bit_choices": (4,), "group_size": 32},
    "narrow": STRUCTURED,
    "uniform width": {**STRUCTURED, "uniform_width": True, "allocator": "uniform"},
    "packed narrow": {"backend": "rtn", "bits": 4, "group_size": 8, "model": "narrow"},
    "decilm": {**FEED_FORWARD, "export": "decilm"},
}
"""What is written, by its name in the table, and how; `model`, `recovered` name the one it is made from."""
TWINS: dict[str, dict[str, Any]] = {"narrow feed-forward": FEED_FORWARD}
"""The same model as an output, in a form that we load ourselves."""


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder with `model`, a Llama of three blocks that fits every form, and `text.txt`."""
    folder = tmp_path_factory.mktemp("workshop")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=1024, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0,
        eos_token_id=1, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "model" / "README.md").write_text("---\nlicense: MIT\n---\n")
    (folder / "text.txt").write_text(" ".join(f"owl{number:04d}" for number in range(500)))
    return folder


@pytest.fixture(scope="session")
def written(workshop: Path) -> Callable[[str], Path]:
    """A function that gives the folder of an output, as `owl-compress run` writes it, not to be changed."""

    def write(output: str) -> Path:
        folder = workshop / output
        if not folder.exists():
            options = copy.copy((OUTPUTS | TWINS)[output])
            if (compressed := options.get("recovered")) is not None:
                text = str(workshop / "text.txt")
                recover(write(compressed), folder, text, tokens=512, seq_len=32, learning_rate=0.01)
                return folder
            source = options.pop("model", None)
            usual = {
                "model": str(write(source) if source else workshop / "model"),
                "calib": str(workshop / "text.txt"),
                "samples": 4, "seq_len": 32, "device": "cpu", "allocator": "owl",
            }  # fmt: skip
            run(Recipe.from_options(usual | options), folder)
        return folder

    return write


@pytest.fixture(scope="session")
def expected(written: Callable[[str], Path], logits_of: Callable[[Any], Tensor]) -> Callable[[str], Tensor]:
    """A function that gives the logits of an output as we load it ourselves."""
    return lambda output: logits_of(load(str(written(output))).model.eval())


PAGE = Path(__file__).parents[2] / "docs" / "elsewhere.md"
Row = tuple[str, str, str, str]  # output, consumer, how it was proven, versions


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--proven", action="store_true", help="write the rows that passed into docs/elsewhere.md"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[PROVEN] = []


PROVEN = pytest.StashKey[list[Row]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: Any = yield
    mark = item.get_closest_marker("proves")
    if mark is not None and call.when == "call" and report.passed:
        consumer, *packages = mark.args
        how = " ".join((item.function.__doc__ or "").split())  # type: ignore[attr-defined]
        versions = ", ".join(f"{name} {version(name)}" for name in packages)
        output = item.callspec.params["output"]  # type: ignore[attr-defined]
        item.config.stash[PROVEN].append((output, consumer, how, versions))
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--proven", default=False) and session.config.stash[PROVEN]:
        PAGE.write_text(with_rows(PAGE.read_text(encoding="utf-8"), session.config.stash[PROVEN]))


def with_rows(page: str, proven: list[Row]) -> str:
    """The page with these rows; those of other tests stay, in the order of outputs and consumers."""
    start = page.index("|---|")
    end = page.index("\n\n", start)
    kept = [tuple(line.strip("| ").split(" | ")) for line in page[start:end].splitlines()[1:]]
    rows = {row[:2]: row for row in [*kept, *proven]}
    order = list(OUTPUTS)
    lines = [f"| {' | '.join(row)} |" for row in sorted(rows.values(), key=lambda row: order.index(row[0]))]
    return "\n".join([page[: page.index("\n", start)], *lines]) + page[end:]
