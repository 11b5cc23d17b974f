"""Comparisons from Python: rows are what single runs give, made once, and kept whatever happens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import owl_compress
from owl_compress.documents.comparison import Row, Status
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.temporary import temporary_name
from owl_compress.errors import RequestError
from owl_compress.pipeline.comparison.carrying_out import Workplace

GRID = {
    "model": "model", "calib": "text.txt", "data": ["other.txt", "text.txt"], "samples": 4, "seq-len": 32,
    "max-windows": 2, "device": "cpu", "allocator": ["uniform", "owl"], "seed": [0, 1],
    "cases": [{"backend": "wanda", "sparsity": 0.6}, {"backend": "rtn", "bits": 3, "group-size": 8}],
}  # fmt: skip
ONE = {name: value for name, value in GRID.items() if name != "cases"} | {
    "data": "other.txt", "seed": 0, "sparsity": 0.5
}  # fmt: skip


@pytest.fixture
def compare(here: Path) -> Callable[..., tuple[Row, ...]]:
    """A function that writes a grid and carries it out in RESULTS."""

    def run(grid: dict[str, Any]) -> tuple[Row, ...]:
        (here / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
        return owl_compress.compare("grid.yaml", "RESULTS")

    return run


@pytest.fixture
def carried_out(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the cells that were carried out."""
    done: list[str] = []
    real = Workplace.carry_out

    def noted(self: Workplace, cell: Any, fingerprint: str) -> Row:
        done.append(cell.name)
        return real(self, cell, fingerprint)

    monkeypatch.setattr(Workplace, "carry_out", noted)
    return done


def test_rows_are_what_single_runs_give(compare: Callable[..., tuple[Row, ...]], here: Path) -> None:
    rows = compare(GRID)
    assert [row.name for row in rows] == [
        "dense", *(f"sparsity=0.6 {one} wanda seed={s}" for one in ("uniform", "owl") for s in (0, 1)),
        *(f"{one} rtn seed={s} bits=3 group-size=8" for one in ("uniform", "owl") for s in (0, 1)),
    ]  # fmt: skip
    assert {row.status for row in rows} == {Status.DONE}
    for row in rows[1::2]:
        settings = {name: value for name, value in row.recipe.items() if name != "data"}
        out = here / row.cell[:8]
        done = owl_compress.run(Recipe.from_options(settings | {"data": "other.txt"}), out).result
        assert done.evaluation is not None
        assert row.perplexity["other.txt"] == done.evaluation.compressed
        assert rows[0].perplexity["other.txt"] == done.evaluation.dense
        assert (row.bytes_on_disk, row.n_params) == (done.totals.bytes_on_disk, done.totals.n_params_after)
        assert row.bits_per_weight == pytest.approx(done.totals.bits_per_weight)
        assert row.achieved == done.totals.achieved
        assert len(row.budgets) == 3
        assert row.provenance.texts.keys() == {"calib", "data other.txt", "data text.txt"} - (
            {"calib"} if row.recipe["backend"] == "rtn" and row.recipe["allocator"] == "uniform" else set()
        )


def test_plans_are_tried_where_the_best_is_asked_for(
    compare: Callable[..., tuple[Row, ...]], here: Path
) -> None:
    tried = {"allocator": ["owl", "auto"], "candidates": "owl", "max-cost": "2500", "damage-samples": 2}
    dense, owl, auto = compare(ONE | tried | {"damage-len": 16, "backend": "wanda"})
    assert [row.status for row in (dense, owl, auto)] == [Status.DONE] * 3
    assert owl.group == auto.group
    assert "candidates" not in owl.recipe
    done = owl_compress.run(Recipe.from_options(auto.recipe | {"data": "other.txt"}), here / "OUT").result
    assert done.evaluation is not None
    assert auto.perplexity["other.txt"] == done.evaluation.compressed


def test_importance_is_measured_once_for_cells_that_see_the_same(
    compare: Callable[..., tuple[Row, ...]], here: Path
) -> None:
    compare(ONE | {"allocator": "owl", "metric": ["lod@3", "lod@5"], "lam": [0.05, 0.1], "seed": [0, 1]})
    reports = list((here / "RESULTS" / "shared").glob("report-*.json"))
    assert len(reports) == 2  # one for each seed
    assert json.loads(reports[0].read_text())["blocks"][0]["metrics"].keys() >= {"lod@3", "lod@5"}


def test_statistics_of_the_dense_model_are_gathered_once(
    compare: Callable[..., tuple[Row, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[str] = []
    for name in ("measure_with_statistics", "dense_statistics"):
        real = getattr(owl_compress.pipeline.comparison.shared, name)
        monkeypatch.setattr(
            f"owl_compress.pipeline.comparison.shared.{name}",
            lambda *a, real=real, name=name, **k: passes.append(name) or real(*a, **k),
        )
    monkeypatch.delattr("owl_compress.compression.driver.gather_dense")
    grid = ONE | {"statistics": "dense", "sparsity": [0.5, 0.6], "measure-samples": 4}
    shared = compare(grid)
    assert passes == ["dense_statistics", "measure_with_statistics"]
    assert {row.status for row in shared} == {Status.DONE}


def test_what_has_a_row_is_not_carried_out_again(
    compare: Callable[..., tuple[Row, ...]], carried_out: list[str], here: Path
) -> None:
    first = compare(ONE)
    assert carried_out == ["dense", "uniform", "owl"]
    assert compare(ONE) == first
    assert len(carried_out) == 3
    more = compare(ONE | {"sparsity": [0.5, 0.6]})
    assert carried_out[3:] == ["sparsity=0.6 uniform", "sparsity=0.6 owl"]
    assert [row.name for row in more[1:]] == [
        f"sparsity={s} {a}" for a in ("uniform", "owl") for s in (0.5, 0.6)
    ]
    assert {row.cell for row in first} <= {row.cell for row in more}
    (here / "other.txt").write_text("another text, of the same name " * 20)
    compare(ONE)
    assert carried_out[5:] == ["dense", "uniform", "owl"]


def test_a_truncated_last_line_runs_again(
    compare: Callable[..., tuple[Row, ...]], carried_out: list[str], here: Path
) -> None:
    first = compare(ONE)
    rows = here / "RESULTS" / "rows.jsonl"
    rows.write_bytes(rows.read_bytes()[:-50])
    again = compare(ONE)
    assert carried_out[3:] == ["owl"]
    assert [row.perplexity for row in again] == [row.perplexity for row in first]
    assert all(json.loads(line) for line in rows.read_text().splitlines())


def test_what_is_refused_is_a_row_and_the_rest_goes_on(
    compare: Callable[..., tuple[Row, ...]], here: Path
) -> None:
    rows = compare(
        ONE | {
            "allocator": "uniform", "calib": ["missing.txt", "text.txt"], "samples": [4, 4000],
            "cases": [{"backend": "gptq"}, {"model": "nowhere", "calib": "text.txt", "samples": 4}],
        }
    )  # fmt: skip
    by_status = {status: [row for row in rows if row.status is status] for status in Status}
    assert [row.name for row in by_status[Status.DONE]] == [
        "dense model",
        "model wanda calib=text.txt samples=4",
    ]
    reasons = [row.reason or "" for row in by_status[Status.REFUSED]]
    assert any("missing.txt" in reason for reason in reasons)
    assert any("too short" in reason or "--samples" in reason for reason in reasons)
    assert any("backend 'gptq' carries out budgets in bits" in reason for reason in reasons)
    assert any("'nowhere'" in reason for reason in reasons)
    assert all("\n" not in reason for reason in reasons)
    table = (here / "RESULTS" / "table.md").read_text()
    assert all(reason in table for reason in reasons)


def test_a_defect_in_one_cell_is_a_row_and_the_model_is_whole_again(
    compare: Callable[..., tuple[Row, ...]], monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    real = owl_compress.pipeline.comparison.figures.perplexity
    calls = iter(range(100))

    def breaks(*args: Any, **options: Any) -> Any:
        if next(calls) == 1:
            raise ZeroDivisionError("a defect")
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr("owl_compress.pipeline.comparison.figures.perplexity", breaks)
        rows = compare(ONE)
    assert [row.status for row in rows] == [Status.DONE, Status.FAILED, Status.DONE]
    assert (rows[1].reason or "").startswith("ZeroDivisionError: a defect (test_comparison.py:")
    again = compare(ONE)
    assert [row.status for row in again] == [Status.DONE] * 3
    whole = owl_compress.run(Recipe.from_options({**again[2].recipe, "data": "other.txt"}), None)
    assert whole.result.evaluation is not None
    assert again[2].perplexity["other.txt"] == whole.result.evaluation.compressed


def test_cells_that_spend_another_amount_than_their_group_have_drifted(
    compare: Callable[..., tuple[Row, ...]], here: Path
) -> None:
    # In three small blocks whole heads are large: equal shares cannot spend what owl can.
    structured = {"backend": "structured", "prune-ratio": 0.4, "round-to": 8, "lam": 0.1}
    rows = compare({name: one for name, one in ONE.items() if name != "sparsity"} | structured)
    dense, uniform, owl = rows
    assert [row.status for row in rows] == [Status.DONE, Status.DRIFTED, Status.DONE]
    assert (
        uniform.reason.partition(":")[0]
        == f"keeps {uniform.achieved:.4f} width, less than the {owl.achieved:.4f} of its group"
    )
    assert "(drifted)" in (here / "RESULTS" / "table.md").read_text()
    assert dense.achieved is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("RESULTS/grid.yaml", "mine: yes", "results folder RESULTS exists and holds no results of compare"),
        ("RESULTS/notes.txt", "mine", "results folder RESULTS exists and holds no results of compare"),
        ("RESULTS", "a file", "results folder RESULTS is a file"),
    ],
)
def test_a_folder_of_something_else_is_left_alone(
    name: str, content: str, message: str, compare: Callable[..., Any], here: Path
) -> None:
    (here / name).parent.mkdir(exist_ok=True)
    (here / name).write_text(content)
    with pytest.raises(RequestError, match=message):
        compare(ONE)
    assert (here / name).read_text() == content


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"baseline": "unifrom"}, "baseline 'unifrom' is the allocator of no cell: did you mean 'uniform'?"),
        ({"baseline": "owl", "allocator": "uniform"}, "baseline 'owl' is the allocator of no cell"),
        ({"data": []}, "grid.yaml: nothing is measured: add data, one text or a list, or tasks"),
        ({"data": "nowhere.txt"}, r"grid.yaml: .*nowhere.txt.* \(and so for all 3 cells\)"),
        ({"model": "nowhere/at/all"}, r"grid.yaml: .*nowhere/at/all.* \(and so for all 3 cells\)"),
        (
            {"task-file": "nowhere.jsonl"},
            r"grid.yaml: .*(nowhere.jsonl|lm-eval).* \(and so for all 3 cells\)",
        ),
    ],
)
def test_what_no_cell_can_do_without_is_told_before_anything_is_written(
    changed: dict[str, Any], message: str, compare: Callable[..., Any], here: Path
) -> None:
    with pytest.raises(RequestError, match=message):
        compare(ONE | changed)
    assert not (here / "RESULTS").exists()


def test_a_model_that_is_read_block_by_block_is_compared_in_no_cell(
    compare: Callable[..., tuple[Row, ...]],
) -> None:
    rows = compare(ONE | {"offload": "disk"})
    assert {row.status for row in rows} == {Status.REFUSED}
    assert "takes the whole model in memory: use --offload host" in str(rows[0].reason)


def test_a_results_folder_in_a_model_that_is_read_is_refused(compare: Callable[..., Any], here: Path) -> None:
    (here / "grid.yaml").write_text(yaml.safe_dump(ONE))
    with pytest.raises(RequestError, match="lies in model, which is read"):
        owl_compress.compare("grid.yaml", "model/RESULTS")
    assert not (here / "model" / "RESULTS").exists()


def test_a_folder_that_was_only_begun_is_gone_on_in(
    compare: Callable[..., tuple[Row, ...]], here: Path
) -> None:
    (here / "RESULTS" / "shared").mkdir(parents=True)
    (here / "RESULTS" / temporary_name("grid.yaml")).touch()
    assert [row.status for row in compare(ONE)] == [Status.DONE] * 3


def test_what_is_shared_and_damaged_is_measured_again(
    compare: Callable[..., tuple[Row, ...]], here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compare(ONE | {"allocator": "owl"})
    (report,) = (here / "RESULTS" / "shared").glob("report-*.json")
    whole = report.read_text()
    report.write_text(whole[:200])
    rows = compare(ONE | {"allocator": "owl", "sparsity": [0.5, 0.6]})
    assert [row.status for row in rows] == [Status.DONE] * 3
    assert "measured again" in caplog.text
    assert json.loads(report.read_text())["blocks"] == json.loads(whole)["blocks"]


def test_an_impossible_grid_is_refused_before_anything_is_written(
    compare: Callable[..., Any], here: Path
) -> None:
    with pytest.raises(
        RequestError, match=r"grid.yaml: backend 'gptq' carries out .* \(and so for all 2 cells\)"
    ):
        compare(ONE | {"backend": "gptq"})
    assert not (here / "RESULTS").exists()


def test_agreement_is_with_the_dense_model_on_the_first_text(
    compare: Callable[..., tuple[Row, ...]], here: Path
) -> None:
    grid = ONE | {"data": ["other.txt", "text.txt"], "agreement": True, "stride": 20}
    dense, *rows = compare(grid)
    assert dense.agreement is None
    for row in rows:
        settings = {name: value for name, value in row.recipe.items() if name != "data"}
        done = owl_compress.run(Recipe.from_options(settings | {"data": "other.txt"}), None).result
        assert done.evaluation is not None
        assert row.agreement == done.evaluation.agreement
        assert row.agreement.data == "other.txt"
        assert row.perplexity["other.txt"] == done.evaluation.compressed
        assert row.perplexity["text.txt"].stride == 20
    (more,) = [row for row in compare(grid | {"seed": 1}) if row.recipe.get("allocator") == "owl"]
    assert more.agreement is not None  # though the dense row was there already
    assert "| KL |" in (here / "RESULTS" / "table.md").read_text()
