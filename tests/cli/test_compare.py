"""compare on the command line: rows as JSON or a table, kept whatever ends it, made by one or several."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from owl_compress.documents.comparison import read_results

GRID = """
model: model
calib: text.txt
data: other.txt
samples: 4
seq-len: 32
max-windows: 2
device: cpu
allocator: [uniform, owl]
sparsity: 0.5
"""


@pytest.fixture
def grid(here: Path) -> Path:
    (here / "grid.yaml").write_text(GRID)
    return here / "grid.yaml"


def test_the_answer_is_the_rows(grid: Path, done: Callable[..., Any], here: Path) -> None:
    outcome = done("compare", "grid.yaml", "-o", "RESULTS", "--json")
    assert [row["name"] for row in outcome.json] == ["dense", "uniform", "owl"]
    assert [row["status"] for row in outcome.json] == ["done"] * 3
    assert all(row["perplexity"]["other.txt"]["perplexity"] > 1 for row in outcome.json)
    assert (here / "RESULTS" / "grid.yaml").read_text() == GRID
    files = {path.name for path in (here / "RESULTS").iterdir()}
    assert files == {"grid.yaml", "rows.jsonl", "rows.csv", "summary.csv", "table.md", "page.html", "shared"}
    again = done("compare", "grid.yaml", "-o", "RESULTS", "--quiet", "--json")
    assert again.json == outcome.json
    assert again.err == ""


def test_a_comparison_is_drawn_from_its_folder_or_its_rows(
    grid: Path, done: Callable[..., Any], refused: Callable[..., str], here: Path
) -> None:
    done("compare", "grid.yaml", "-o", "RESULTS", "--quiet")
    assert done("chart", "RESULTS", "-o", "folder.png", "--json").json == {"chart": "folder.png"}
    done("chart", "RESULTS/rows.jsonl", "-o", "rows.png", "--metric", "perplexity other.txt", "--quiet")
    pictures = [(here / name).read_bytes() for name in ("folder.png", "rows.png")]
    assert pictures[0] == pictures[1]
    assert pictures[0].startswith(b"\x89PNG")
    assert "the rows have no figure 'lod@5'" in refused(
        "chart", "RESULTS", "--metric", "lod@5", "-o", "x.png"
    )
    assert "drawn alone: name one of the 2" in refused("chart", "RESULTS", "model", "-o", "x.png")


def test_lines_tell_how_far_it_is_and_a_table_what_came_of_it(grid: Path, done: Callable[..., Any]) -> None:
    grid.write_text(GRID + "cases: [{backend: gptq}]\n")
    outcome = done("compare", "grid.yaml", "-o", "RESULTS")
    lines = outcome.err.splitlines()
    assert lines[0] == "5 cells"
    assert "1/5 uniform gptq: refused: backend 'gptq' carries out" in outcome.err
    assert lines[-1] == "wrote RESULTS: 5 rows, 3 done, 2 refused; RESULTS/table.md has the tables"
    assert outcome.out.splitlines()[0] == "Comparison, 5 cells"
    assert "wanda sparsity=0.5  uniform" in outcome.out
    assert "none left" in outcome.err


def test_a_dry_run_tells_the_cost_and_writes_nothing(
    grid: Path, done: Callable[..., Any], here: Path
) -> None:
    grid.write_text(GRID + "cases: [{backend: gptq}, {backend: structured, prune-ratio: 0.99}]\n")
    found = {row["name"]: row for row in done("compare", "grid.yaml", "--dry-run", "--json").json}
    assert not (here / "RESULTS").exists()
    evaluated, calibration = 2 * 32, 4 * 32
    assert found["dense"]["forward_tokens"] == evaluated
    assert found["sparsity=0.5 uniform wanda"]["forward_tokens"] == evaluated + calibration
    assert found["sparsity=0.5 owl wanda"]["forward_tokens"] == evaluated + calibration
    assert found["sparsity=0.5 uniform gptq"]["note"].startswith(
        "refused: backend 'gptq' carries out budgets in bits"
    )
    assert "cannot be met" in found["uniform structured prune-ratio=0.99"]["note"]
    grid.write_text(GRID)
    done("compare", "grid.yaml", "-o", "RESULTS", "--quiet")
    later = done("compare", "grid.yaml", "-o", "RESULTS", "--dry-run")
    assert later.out.count("has its row") == 3
    assert "0 of 3 cells to carry out" in later.out


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (GRID + "spasity: 1\n", ("-o", "R"), "grid.yaml: line 11: unknown key 'spasity': did you mean"),
        (GRID + "seed: []\n", ("-o", "R"), "grid.yaml: line 11: seed has no values, which leaves no cell"),
        (GRID + "cases: [{sparsity: 0.5}]\n", ("-o", "R"), "grid.yaml: the same cell is there twice"),
        (GRID + "backend: gptq\n", ("-o", "R"), "grid.yaml: backend 'gptq' carries out budgets in bits"),
        (GRID, (), "missing option --out / -o: name the folder of results, or add --dry-run"),
        (GRID, ("-o", "R", "--jobs", "0"), "--jobs 0 is no number of processes"),
        (GRID, ("-o", "model"), "results folder model exists and holds no results of compare"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_line(
    text: str, arguments: tuple[str, ...], message: str, grid: Path, refused: Callable[..., str]
) -> None:
    grid.write_text(text)
    assert message in refused("compare", "grid.yaml", *arguments)


def begun(*arguments: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "owl_compress", "compare", "grid.yaml", "-o", "RESULTS", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_finished_cells_stay_whatever_ends_it(
    kind: signal.Signals, grid: Path, done: Callable[..., Any], here: Path
) -> None:
    grid.write_text(GRID + f"seed: {list(range(40))}\n")
    with begun() as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, b"")
        assert any(line.startswith(b"3/81 ") for line in lines)
        process.send_signal(kind)
        rest = process.stderr.read().decode()
    if kind is signal.SIGTERM:
        assert process.returncode == 2
        last = rest.splitlines()[-1]
        assert last.startswith("owl-compress: interrupted: RESULTS keeps ")
        assert last.endswith(" rows of 81; run the same command to go on")
        assert (here / "RESULTS" / "table.md").exists()
    kept = read_results(here / "RESULTS")
    assert 3 <= len(kept) < 81
    grid.write_text(GRID + "seed: [0, 1]\n")
    rows = done("compare", "grid.yaml", "-o", "RESULTS", "--json", "--quiet").json
    assert [row["status"] for row in rows] == ["done"] * 5
    assert {row.cell for row in kept if row.seed in {0, 1}} <= {row["cell"] for row in rows}


@pytest.mark.slow
def test_several_processes_share_the_cells_out_and_one_may_die(
    grid: Path, done: Callable[..., Any], here: Path
) -> None:
    grid.write_text(GRID + f"seed: {list(range(6))}\n")
    with begun("--jobs", "2") as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        rows = here / "RESULTS" / "rows.jsonl"
        deadline = time.monotonic() + 900  # of a busy machine
        while not (rows.exists() and rows.read_text().count("\n") >= 2):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        assert process.stderr is not None
        process.stderr.read()
    assert process.returncode == 0
    found = read_results(here / "RESULTS")
    assert [row.status.value for row in found] == ["done"] * 13
    alone = done("compare", "grid.yaml", "-o", "ALONE", "--json", "--quiet").json
    assert {row["cell"]: row["perplexity"] for row in alone} == {
        row.cell: row.model_dump(mode="json")["perplexity"] for row in found
    }


@pytest.mark.slow
def test_processes_of_torchrun_share_the_cells_out(grid: Path, here: Path) -> None:
    grid.write_text(GRID + "seed: [0, 1, 2]\n")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "owl_compress", "compare", "grid.yaml", "-o", "RESULTS", "--json"]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env={**environment, "RANK": str(rank)})
        for rank in (1, 0)
    ]
    answers = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert answers[0] == b""
    assert [row["status"] for row in json.loads(answers[1])] == ["done"] * 7
    assert len((here / "RESULTS" / "rows.jsonl").read_text().splitlines()) == 7
