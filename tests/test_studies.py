"""Grids of benchmarks/ can all be meant, on any model, and published figures stand beside their cells."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from owl_compress.documents.grid import Grid
from owl_compress.pipeline.comparison.cells import Cell, cells_of, grid_names

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
GRIDS = sorted(
    path.relative_to(BENCHMARKS).with_suffix("").as_posix()
    for folder in ("studies", "grids")
    for path in (BENCHMARKS / folder).glob("*.yaml")
)


@pytest.fixture(scope="module")
def study() -> Any:
    """The script, which is no part of the package."""
    return script("study")


def script(name: str) -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


def cells(study: Any, name: str, protocol: str) -> tuple[Cell, ...]:
    content = study.content_of(name, "builtin", {}, protocol)
    return cells_of(Grid.of(content, grid_names()), BENCHMARKS)


@pytest.mark.parametrize("protocol", ["paper", "embedded"])
@pytest.mark.parametrize("name", GRIDS)
def test_every_cell_can_be_meant(study: Any, name: str, protocol: str) -> None:
    found = cells(study, name, protocol)
    assert len(found) > 1
    assert [cell.refusal for cell in found if cell.request is None] == []


def test_published_figures_are_of_cells_that_there_are(study: Any) -> None:
    figures = json.loads((BENCHMARKS / "published" / "owl.json").read_text())["figures"]
    assert figures
    for figure in figures:
        found = cells(study, f"studies/{figure['study']}", "paper")
        wanted = figure["cell"].items() - {("dense", True)}
        alike = [
            cell
            for cell in found
            if cell.is_dense == figure["cell"].get("dense", False)
            and all(cell.settings.get(name, default(name)) == value for name, value in wanted)
        ]
        assert len(alike) == 1, figure


def default(name: str) -> Any:
    return {"granularity": "block"}.get(name)


def test_what_is_given_takes_the_place_of_a_line(study: Any) -> None:
    content = study.content_of("studies/sweep", "org/model", {"data": "text.txt", "seq-len": 64})
    assert (content["model"], content["calib"], content["data"]) == ("org/model", "c4", "text.txt")
    assert content["seq-len"] == 64
    assert "protocol" not in content
    assert study.content_of("studies/sweep", "org/model", {})["protocol"] == "paper"
    assert study.content_of("studies/sweep", "builtin", {})["samples"] == 12


def test_a_study_is_carried_out_and_shown(
    study: Any, here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["study.py", "studies/per_linear", "--model", "model", "--protocol", "embedded"]
    words += ["--calib", "text.txt", "--data", "./other.txt", "-o", "RESULTS"]
    words += ["--set", "seq-len=32", "--set", "max-windows=2", "--set", "samples=2", "--set", "device=cpu"]
    monkeypatch.setattr(sys, "argv", [*words, "--set", "measure-samples=2"])
    assert study.main() == 0
    shown = capfd.readouterr().out.splitlines()
    lines = [line for line in shown if line.startswith("|")]
    assert lines[0].endswith("perplexity of LLaMA-7B, published |")
    assert lines[2].startswith("| dense |")
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["", "24.55", "86.285"]
    made = [json.loads(line) for line in (here / "RESULTS" / "rows.jsonl").read_text().splitlines()]
    rows = [script("comparison_rows").as_benchmark_row("perplexity", row) for row in made]
    assert [row["name"] for row in rows] == ["dense", *["wanda S=0.7 owl lod@5 lam=0.08"] * 2]
    assert [f"{row['perplexity']:.4g}" for row in rows] == [line.split("|")[3].strip() for line in lines[2:]]
    monkeypatch.setattr(sys, "argv", ["study.py", "studies/per_linear", "--show", "RESULTS"])
    assert study.main() == 0
    assert [line for line in capfd.readouterr().out.splitlines() if line.startswith("|")] == lines


OF_BENCHMARKS = {
    "perplexity": ("unstructured",),
    "grids": ("nm", "bits"),
    "structured": ("structured",),
}


@pytest.mark.parametrize("benchmark", OF_BENCHMARKS)
def test_every_row_of_a_benchmark_is_a_cell_of_its_grids(study: Any, benchmark: str) -> None:
    named = [
        script("comparison_rows").name_of(
            benchmark, {name.replace("-", "_"): value for name, value in cell.settings.items()}
        )
        for grid in OF_BENCHMARKS[benchmark]
        for cell in cells(study, f"grids/{grid}", "embedded")
        if not cell.is_dense
    ]
    assert len(set(named)) == len(named)
    lines = (BENCHMARKS / "results" / f"{benchmark}.jsonl").read_text().splitlines()
    committed = {json.loads(line)["name"] for line in lines} - {"dense"}
    # Rows of rtn were once made without naming the size of groups, which is the default.
    assert {name.replace(" group_size=64", "") for name in committed} <= {
        name.replace(" group_size=64", "") for name in named
    }
