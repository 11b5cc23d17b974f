"""What files and folders say on the terminal, and what differs between two."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from owl_compress.cli.sparklines import sparkline, sparkline_note
from owl_compress.documents.plan import Plan


def test_a_sparkline_has_a_sign_for_each_number_up_to_a_line() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, None, 3.0]) == "▁ █"
    assert sparkline([2.0, 2.0]) == "▄▄"
    assert sparkline([]) == sparkline([None]) == ""
    assert len(sparkline(list(range(1000)))) <= 72
    assert sparkline_note("x", [1.0, 3.0]) == "x ▁█ 1 to 3"


def test_a_file_is_shown_with_its_blocks_in_a_line(
    done: Callable[..., Any], here: Path, plan: Path, profile: Path
) -> None:
    asked = [1 - block.value for block in Plan.read(plan).per_block]
    assert f"sparsity {sparkline(asked)} " in done("show", "plan.json").out
    report = done("show", "report.json").out
    assert "Importance of" in report
    assert "lod@5" in report
    assert "damage of each block at 0.2 kept ▁▅█ 2 to 4" in done("show", "sensitivity.json").out
    assert done("show", "plan.json", "--json").json == {"plan.json": json.loads(plan.read_text())}
    assert done("show", "plan.json", "--quiet").out == ""


def test_a_folder_is_all_that_is_in_it(
    done: Callable[..., Any], here: Path, run_options: tuple[str, ...]
) -> None:
    done(*run_options, "-o", "OUT", "--quiet")
    shown = done("show", "OUT")
    for told in (
        "Importance of",
        "Plan by owl",
        "achieved",
        "compressed by wanda",
        "largest error of each block",
    ):
        assert told in shown.out
    assert set(done("show", "OUT", "--json").json) == {"report.json", "plan.json", "result.json"}
    other = done("show", "OUT", "OUT/plan.json")
    assert "Two plans that say the same" in other.out
    assert other.err.splitlines() == ["only OUT holds a report", "only OUT holds a result"]


def test_two_plans_are_told_apart_block_by_block(done: Callable[..., Any], here: Path, plan: Path) -> None:
    done(
        "allocate", "report.json", "--allocator", "uniform", "--sparsity", "0.6", "-o", "even.json", "--quiet"
    )
    shown = done("show", "plan.json", "even.json")
    assert "allocator.name" in shown.out
    assert "% of the budget goes to other weights" in shown.out
    found = done("show", "plan.json", "even.json", "--json").json
    (difference,) = found["differences"]
    owl, flat = (json.loads((here / name).read_text())["budgets"] for name in ("plan.json", "even.json"))
    moved = sum(abs(a["value"] - b["value"]) * a["n_weights"] for a, b in zip(owl, flat, strict=True)) / 2
    assert difference["moved"] == pytest.approx(moved / sum(a["value"] * a["n_weights"] for a in owl))
    assert difference["fields"]["allocator.name"] == ["owl", "uniform"]
    (quantity,) = difference["quantities"]
    assert [row["second"] for row in quantity["rows"]] == pytest.approx([0.4] * 3)
    assert quantity["rank_correlation"] is None  # uniform ranks nothing


def test_two_reports_agree_by_rank(
    done: Callable[..., Any], here: Path, report: Path, edit_json: Callable[..., None]
) -> None:
    (here / "again.json").write_text(report.read_text())
    assert "Two reports that say the same" in done("show", "report.json", "again.json").out

    def turn(content: Any) -> None:
        values = [block["metrics"]["lod@5"] for block in content["blocks"]]
        for block, value in zip(content["blocks"], reversed(values), strict=True):
            block["metrics"]["lod@5"] = value
        content["provenance"]["calibration"]["seed"] = 7

    edit_json(here / "again.json", turn)
    found = done("show", "report.json", "again.json", "--json").json["differences"][0]
    assert found["fields"] == {"provenance.calibration.seed": [0, 7]}
    assert found["quantities"][0]["name"] == "lod@5"
    assert found["quantities"][1]["rank_correlation"] == pytest.approx(1.0)


def test_what_cannot_be_compared_is_said(
    done: Callable[..., Any], here: Path, plan: Path, edit_json: Callable[..., None]
) -> None:
    done("allocate", "report.json", "--allocator", "uniform", "--bits", "3", "-o", "bits.json", "--quiet")
    assert "cannot be compared: budgets in density and in bits" in done("show", "plan.json", "bits.json").out

    def rename(content: Any) -> None:
        for budget in content["budgets"]:
            budget["name"] = f"other.{budget['name']}"
            budget["block"] = f"other.{budget['block']}"

    (here / "other.json").write_text(plan.read_text())
    edit_json(here / "other.json", rename)
    shown = done("show", "plan.json", "other.json").out
    assert "no name in common: they are of two models" in shown
    assert "rank correlation" not in shown


def test_plans_of_models_of_other_sizes_are_not_held_against_each_other(
    done: Callable[..., Any], here: Path, plan: Path, edit_json: Callable[..., None]
) -> None:
    def widen(content: Any) -> None:
        for budget in content["budgets"]:
            budget["n_weights"] *= 2

    (here / "other.json").write_text(plan.read_text())
    edit_json(here / "other.json", widen)
    found = done("show", "plan.json", "other.json", "--json").json["differences"][0]
    assert "linears of other sizes" in found["not_comparable"][0]
    assert (found["quantities"], found["moved"]) == ([], None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("plan.json", "report.json"),
            "(plan) and report.json (report) cannot be compared: name two",
        ),
        (("model",), "model holds nothing of ours"),
        (("gone.json",), "cannot read gone.json"),
        (("plan.json", "cut.json"), "cut.json is not whole JSON"),
        (("plan.json", "rows.jsonl"), "rows.jsonl is a comparison"),
        (("rows.jsonl",), "rows.jsonl has no rows yet"),
        ((), "missing argument FILE"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    refused: Callable[..., str], here: Path, plan: Path, arguments: tuple[str, ...], message: str
) -> None:
    (here / "cut.json").write_text(plan.read_text()[:-20])
    (here / "rows.jsonl").write_text('{"schema": "owl-compress/row/1", "cut')
    assert message in refused("show", *arguments)
