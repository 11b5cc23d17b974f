"""`eval --latency`: its answer, and what is refused before a model is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from owl_compress.documents.costs import CostTable
from owl_compress.errors import RequestError
from owl_compress.pipeline.timing import check_two_of_four

EVAL = ("eval", "model", "--data", "other.txt", "--seq-len", "32", "--device", "cpu")


def test_latency_is_a_key_of_the_answer(done: Callable[..., Any]) -> None:
    options = ("--latency", "--prompt-len", "8", "--new-tokens", "2", "--batch-size", "3")
    (row,) = done(*EVAL, *options, "--json", "--quiet").json["latency"]
    assert row["shape"] == {"batch_size": 3, "prompt_len": 8, "new_tokens": 2}
    assert row["kernel"] == "dense"
    assert row["prefill_seconds"] > 0 < row["decode_seconds_per_token"]
    assert (row["name"], row["n_params"], row["speedup"]) == ("model", 44_448, None)
    assert row["blocks"].keys() == row["head"].keys() == {"prefill_seconds", "decode_seconds_per_token"}
    assert "decode, tokens per second" in done(*EVAL, *options).out
    assert "latency" not in done(*EVAL, "--json", "--quiet").json


COSTS = ("--latency", "--prompt-len", "8", "--new-tokens", "2", "--cost-widths", "0.1,0.5")


def test_a_cost_table_is_written(done: Callable[..., Any], here: Path) -> None:
    assert "wrote costs.json" in done(*EVAL, *COSTS, "--cost-table", "costs.json").err
    assert {costs.part for costs in CostTable.read("costs.json").parts} == {"attention", "mlp"}


def test_a_cost_table_needs_no_text(done: Callable[..., Any], here: Path) -> None:
    told = done("eval", "model", "--device", "cpu", *COSTS, "--cost-table", "costs.json", "--json").json
    assert "perplexity" not in told
    assert told["latency"]
    assert CostTable.read("costs.json").parts


def test_a_cost_table_makes_a_model_faster(
    done: Callable[..., Any], here: Path, edit_json: Callable[..., None]
) -> None:
    done(*EVAL, *COSTS, "--cost-table", "costs.json")
    edit_json(Path("costs.json"), _a_second_for_1000_weights)
    run = ("run", "model", "--calib", "text.txt", "--samples", "2", "--seq-len", "32", "--device", "cpu")
    narrow = ("--backend", "structured", "--round-to", "1", "--allocator", "uniform", "--json", "--quiet")
    done(*run, *narrow, "--speedup", "1.01", "--cost-table", "costs.json", "-o", "OUT")
    told = json.loads(Path("OUT/plan.json").read_text())["allocator"]["parameters"]
    assert told["predicted_seconds"] <= told["asked_seconds"] * (1 + 1e-9)
    assert told["cost_table"] == CostTable.read("costs.json").fingerprint


def _a_second_for_1000_weights(costs: Any) -> None:
    """In place of what the machine took, which may be the same for every width of so small a model."""
    for part in costs["parts"]:
        for width in part["widths"]:
            width["seconds"] = dict.fromkeys(("prefill", "decode"), width["n_weights"] / 1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--kernel", "dense"), "--kernel says how --latency is measured: add --latency, or drop it"),
        (("--latency", "--kernel", "fast"), "unknown kernel 'fast'"),
        (("--latency", "--kernel", "semi-structured"), "needs a CUDA device and this is the cpu"),
        (("--latency", "--batch-size", "0"), "batch size 0 is below 1"),
        (("--latency", "--prompt-len", "127"), "make 159 positions, the model has 128"),
        (("--prompt-len", "8"), "--prompt-len says how --latency is measured: add --latency, or drop it"),
        (("--compile",), "--compile says how --latency is measured: add --latency, or drop it"),
        (
            ("--latency", "--compile", "--kernel", "semi-structured"),
            "--compile is for dense kernels: drop",
        ),
        (("--cost-table", "c.json"), "--cost-table says how --latency is measured: add --latency"),
        (("--latency", "--cost-widths", "0.5"), "--cost-widths goes with --cost-table: name the file"),
        (("--latency", "--cost-table", "c.json", "--compile"), "drop --compile and --kernel"),
        (("--latency", "--cost-table", "c.json", "--cost-widths", "0"), "cost width 0 is outside (0, 1]"),
        (("--latency", "--cost-table", "c.json", "--cost-widths", "nan"), "cost width nan is outside"),
        (("--latency", "--cost-table", "c.json", "--cost-widths", "1"), "needs a width besides 1"),
        (("--latency", "--cost-table", "c.json", "--cost-widths", "half"), "is no list of shares such as"),
        (("--latency", "--cost-table", "no/c.json"), "no/c.json"),
        (("--latency", "--against", "model"), "--against model is the model itself"),
        (("--latency", "--against", "./nowhere"), "model path './nowhere' does not exist"),
    ],
)
def test_refused_in_one_line(refused: Callable[..., str], options: tuple[str, ...], message: str) -> None:
    assert message in refused(*EVAL, *options)


@pytest.fixture
def narrowed(done: Callable[..., Any], text_options: tuple[str, ...], edit_json: Callable[..., None]) -> Path:
    """A folder that says that heads and channels of `model` were removed."""
    run = ("run", "model", *text_options, "--backend", "magnitude", "--quiet", "--allocator", "uniform")
    done(*run, "--sparsity", "0.5", "-o", "OUT")
    return say_width(Path("OUT"), edit_json)


def say_width(folder: Path, edit_json: Callable[..., None]) -> Path:
    def change(result: Any) -> None:
        for row in result["budgets"]:
            row["unit"] = "width"

    edit_json(folder / "result.json", change)
    return folder


LATENCY = ("--latency", "--prompt-len", "8", "--new-tokens", "2")


def eval_of(folder: Path) -> tuple[str, ...]:
    return (EVAL[0], str(folder), *EVAL[2:], *LATENCY)


def test_a_narrowed_folder_is_timed_against_what_it_was_made_from(
    done: Callable[..., Any], narrowed: Path
) -> None:
    outcome = done(*eval_of(narrowed), "--json")
    dense, small = outcome.json["latency"]
    assert (dense["name"], small["name"]) == ("model", "OUT")
    assert dense["speedup"] is None
    assert small["speedup"]["decode"] == pytest.approx(
        dense["decode_seconds_per_token"] / small["decode_seconds_per_token"]
    )
    assert small["speedup"]["blocks_prefill"] == pytest.approx(
        dense["blocks"]["prefill_seconds"] / small["blocks"]["prefill_seconds"]
    )
    assert dense["dtype"] == small["dtype"] == "float32"
    assert "loading model, which OUT was made from" in outcome.err
    table = done(*eval_of(narrowed)).out
    assert "blocks, decode, times as fast" in table
    assert "head, prefill, ms" in table


def test_a_folder_is_timed_alone_where_the_dense_model_is_gone(
    done: Callable[..., Any], narrowed: Path, edit_json: Callable[..., None]
) -> None:
    edit_json(narrowed / "result.json", lambda result: result["model"].update(id="./gone"))
    outcome = done(*eval_of(narrowed), "--json")
    assert [row["name"] for row in outcome.json["latency"]] == ["OUT"]
    assert "only OUT is timed" in outcome.err
    assert "'./gone' does not exist" in outcome.err


def test_a_folder_compressed_twice_is_timed_against_the_first_model(
    done: Callable[..., Any], narrowed: Path, edit_json: Callable[..., None]
) -> None:
    def change(result: Any) -> None:
        step = {
            "model": "./model",
            "revision": None,
            "backend": "structured",
            "unit": "width",
            "achieved": 0.5,
            "plan": "-",
        }
        result["earlier"] = [step | {"n_params_before": 44_448, "n_params_after": 40_000}]
        result["model"]["id"] = "./gone"
        result["totals"]["n_params_before"] = 40_000
        for row in result["budgets"]:
            row["unit"] = "density"

    edit_json(narrowed / "result.json", change)
    rows = done(*eval_of(narrowed), "--json").json["latency"]
    assert [row["name"] for row in rows] == ["./model", "OUT"]


def test_another_model_of_that_name_is_not_the_dense_one(
    done: Callable[..., Any], narrowed: Path, edit_json: Callable[..., None]
) -> None:
    edit_json(narrowed / "result.json", lambda result: result["totals"].update(n_params_before=50_000))
    outcome = done(*eval_of(narrowed), "--json")
    assert [row["name"] for row in outcome.json["latency"]] == ["OUT"]
    assert "model has 44,448 parameters, and 50,000 are what it had then" in outcome.err


def test_a_folder_with_all_its_heads_is_timed_alone(
    done: Callable[..., Any], text_options: tuple[str, ...]
) -> None:
    done("run", "model", *text_options, "--backend", "magnitude", "--quiet", "--sparsity", "0.5", "-o", "OUT")
    outcome = done(*eval_of(Path("OUT")), "--json")
    assert [row["name"] for row in outcome.json["latency"]] == ["OUT"]
    assert "only OUT" not in outcome.err


def test_any_model_may_be_the_one_to_compare_with(done: Callable[..., Any], narrowed: Path) -> None:
    # in the data type of the model in question, whatever its own
    rows = done(*eval_of(narrowed), "--against", "./model", "--dtype", "bfloat16", "--json").json["latency"]
    assert [(row["name"], row["dtype"]) for row in rows] == [("./model", "bfloat16"), ("OUT", "bfloat16")]


def test_the_folder_must_be_2_of_4(done: Callable[..., Any], text_options: tuple[str, ...]) -> None:
    run = ("run", "model", *text_options, "--backend", "magnitude", "--quiet", "--allocator", "uniform")
    done(*run, "--nm", "2:4", "-o", "GOOD")
    done(*run, "--nm", "3:4", "-o", "BAD")
    check_two_of_four(Path("GOOD"))
    with pytest.raises(
        RequestError, match=r"layers\.0\.self_attn\.q_proj in BAD keeps more in \d+ of 256 gr"
    ):
        check_two_of_four(Path("BAD"))
