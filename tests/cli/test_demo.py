"""The demonstration: on a tiny model, and once for real."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.cli import demo
from owl_compress.pipeline import session


@pytest.fixture
def tiny_demo(
    monkeypatch: pytest.MonkeyPatch, tiny_llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The demonstration on a tiny model, with short windows, on the real builtin text."""
    loaded = LoadedModel(tiny_llama, tokenizer, "builtin", "tiny", None, "float32")
    monkeypatch.setattr(session, "load", lambda *arguments, **options: loaded)
    for name, value in {"_SAMPLES": 4, "_MEASURE_SAMPLES": 2, "_SEQ_LEN": 64, "_WINDOWS": 4}.items():
        monkeypatch.setattr(demo, name, value)


def test_demo(here: Path, done: Callable[..., Any], tiny_demo: None) -> None:
    outcome = done("demo")
    for words in ("dense", "uniform", "owl", "sparsity asked", "0.6000"):
        assert words in outcome.out
    assert {path.name for path in (here / "demo").iterdir()} == {
        "budgets.png", "report.json", "page.html",
        "plan-owl.json", "plan-uniform.json", "result-owl.json", "result-uniform.json",
    }  # fmt: skip
    assert (here / "demo" / "budgets.png").read_bytes().startswith(b"\x89PNG")
    page = (here / "demo" / "page.html").read_text(encoding="utf-8")
    for name in ("uniform", "owl"):
        result = json.loads((here / "demo" / f"result-{name}.json").read_text())
        after = result["evaluation"]["compressed"]["perplexity"]
        assert f"<dt>perplexity, {name}</dt><dd>{after:,.2f}<" in page
    assert outcome.err.rstrip().endswith("open demo/page.html to look at them")


def test_demo_compares_on_equal_terms(here: Path, done: Callable[..., Any], tiny_demo: None) -> None:
    rows = done("demo", "-o", "shown", "--json", "--keep").json
    assert [row["name"] for row in rows] == ["dense", "uniform", "owl"]
    assert [row["asked"] for row in rows] == pytest.approx([0, 0.6, 0.6])
    assert all(0.6 <= row["achieved"] < 0.605 for row in rows[1:])
    calibrations = [
        json.loads((here / "shown" / f"result-{name}.json").read_text())["calibration"]
        for name in ("uniform", "owl")
    ]
    assert calibrations[0] == calibrations[1]
    for row, name in zip(rows, (None, "uniform", "owl"), strict=True):
        model = "model" if name is None else f"shown/{name}"
        options = ("--data", "builtin", "--seq-len", "64", "--max-windows", "4", "--json")
        assert done("eval", model, *options).json["perplexity"] == pytest.approx(row["perplexity"])


def test_failed_demo_leaves_nothing(
    refused: Callable[..., str], tiny_demo: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("owl_compress.pages.chart.budget_chart", interrupt)
    assert refused("demo").startswith("interrupted")


@pytest.mark.slow
def test_real_demo(here: Path, done: Callable[..., Any]) -> None:
    dense, uniform, owl = done("demo", "--json").json
    # Which of the two is ahead is chance here: on one CPU 61.28 against 62.10 for uniform, on another 62.15.
    for pruned in (uniform, owl):
        assert 3 * dense["perplexity"] < pruned["perplexity"] < 6 * dense["perplexity"]
        assert pruned["achieved"] == pytest.approx(0.6, abs=1e-4)
    assert (here / "demo" / "budgets.png").is_file()
