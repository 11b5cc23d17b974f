"""Cards of every output: the hub takes them, and what they tell people to type does what it should."""

import re
import shlex
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from torch import Tensor

from owl_compress.evaluation.undisturbed import undisturbed_process
from owl_compress.pages.card_metadata import HUB_LICENSES

LOADED = (
    "dense-sparse",
    "with adapter",
    "N:M",
    "dequantised",
    "packed",
    "narrow",
    "uniform width",
    "packed narrow",
)
OUTPUTS = (*LOADED, "decilm")
ADDED_AS_IT_RUNS = {"with adapter"}
"""Where peft adds to what a linear gives, and we to its weights."""
RUNS_CODE = {"narrow", "packed narrow"}


def section(card: str, title: str) -> str:
    """What stands under a heading, up to the next."""
    return card.partition(f"\n## {title}\n" if f"\n## {title}\n" in card else f"\n### {title}\n")[
        2
    ].partition("\n##")[0]


def snippets(language: str, text: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


@pytest.fixture
def card(written: Callable[[str], Path], output: str, tmp_path: Path, monkeypatch: Any) -> str:
    """The card of an output; the working folder has that output where snippets look for it."""
    (tmp_path / "path" / "to" / "this").mkdir(parents=True)
    (tmp_path / "path" / "to" / "this" / "folder").symlink_to(written(output))
    monkeypatch.chdir(tmp_path)
    return (written(output) / "README.md").read_text(encoding="utf-8")


@pytest.mark.proves("the hub's card", "huggingface_hub")
@pytest.mark.parametrize("output", OUTPUTS)
def test_the_hub_takes_the_card(card: str, output: str) -> None:
    """`ModelCard` reads it, and licence, parent, tags and types are what the hub documents"""
    data = ModelCard(card).data.to_dict()
    assert yaml.safe_load(ModelCard(card).data.to_yaml()) == data
    assert data["license"] in HUB_LICENSES
    assert data["pipeline_tag"] == "text-generation"
    assert data.get("base_model_relation", "finetune") in {"adapter", "merge", "quantized", "finetune"}
    assert all(isinstance(tag, str) and re.fullmatch(r"[\w.-]+", tag) for tag in data["tags"])
    assert len(set(data["tags"])) == len(data["tags"])
    assert data.get("library_name") == (None if "decilm" in data["tags"] else "transformers")
    if "base_model" in data:
        validate_repo_id(data["base_model"])


@pytest.mark.parametrize("output", LOADED)
@pytest.mark.usefixtures("copied_modules")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
def test_the_snippet_for_transformers_loads_it(
    card: str, output: str, expected: Callable[[str], Tensor], logits_of: Callable[[Any], Tensor]
) -> None:
    (code,) = snippets("python", section(card, "How to load"))
    assert ("trust_remote_code=True" in code) == (output in RUNS_CODE)
    names: dict[str, Any] = {}
    exec(compile(code, "card", "exec", dont_inherit=True), names)
    closeness = 1e-5 if output in ADDED_AS_IT_RUNS else 0
    torch.testing.assert_close(logits_of(names["model"].eval()), expected(output), atol=closeness, rtol=0)
    assert names["tokenizer"]("owl")["input_ids"]


@pytest.mark.parametrize("output", ["decilm"])
def test_the_card_of_a_form_for_others_says_so(card: str) -> None:
    assert snippets("python", section(card, "How to load").partition("### ")[0]) == []
    assert "transformers has no class for it" in card
    assert "does not load this form" in section(card, "lm-eval")


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_snippet_for_vllm_can_be_meant_or_there_is_none(card: str, output: str) -> None:
    found = snippets("python", section(card, "vLLM"))
    if output in RUNS_CODE:
        assert found == []
        assert "vLLM does not serve this form" in section(card, "vLLM")
        return
    (code,) = found
    compile(code, "card", "exec", dont_inherit=True)
    assert 'LLM("path/to/this/folder"' in code
    assert ("trust_remote_code=True" in code) == (output == "decilm")
    assert "with vLLM 0.32 on a CPU" in section(card, "vLLM")


ANIMALS = [("owl", "A"), ("bat", "B"), ("cat", "A")]


@pytest.fixture
def arc_easy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows in the columns of that data set stand for it, which is fetched from the hub otherwise.

    Of lm-eval's tasks the folder of this one is read: an index of all takes longer than the rest.
    """
    datasets = pytest.importorskip("datasets")
    with undisturbed_process():
        from lm_eval.tasks._index import TaskIndex

    choices = {"text": ["by night", "by day"], "label": ["A", "B"]}
    rows = [
        {"question": f"When does a {name} hunt?", "choices": choices, "answerKey": key}
        for name, key in ANIMALS
    ]
    parts = dict.fromkeys(("train", "validation", "test"), datasets.Dataset.from_list(rows))

    def load(path: str, name: str, **options: Any) -> Any:
        assert (path, name) == ("allenai/ai2_arc", "ARC-Easy")
        return datasets.DatasetDict(parts)

    build = TaskIndex.build
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(TaskIndex, "build", lambda _, paths: build([path / "arc" for path in paths]))


@pytest.mark.proves("lm-eval", "lm_eval")
@pytest.mark.skipif(not find_spec("lm_eval"), reason="needs the extra 'eval'")
@pytest.mark.parametrize("output", LOADED)
@pytest.mark.usefixtures("arc_easy", "copied_modules")
def test_the_snippet_for_lm_eval_scores_it(card: str, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """the command on the card, as it is printed there, scores `arc_easy`"""
    (command,) = snippets("sh", section(card, "lm-eval"))
    words = shlex.split(command)
    assert words[0] == "lm_eval"
    assert ("trust_remote_code=True" in command) == (output in RUNS_CODE)
    monkeypatch.setattr(sys, "argv", words)
    with undisturbed_process(), redirect_stdout(StringIO()) as printed:
        from lm_eval.__main__ import cli_evaluate  # what the command lm_eval runs

        cli_evaluate()
    (score,) = re.findall(r"\|arc_easy\|.*\|acc\|.*?\|(\d\.\d+)\|", printed.getvalue().replace(" ", ""))
    assert round(3 * float(score), 3) in {0, 1, 2, 3}
