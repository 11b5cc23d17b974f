"""`export` and `import`: there and back, and what is refused."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from owl_compress.documents.plan import Plan

Command = Callable[..., Any]


def test_a_plan_goes_to_another_tool_and_comes_back(done: Command, report: Path, plan: Path) -> None:
    outcome = done("export", plan, "--to", "llm-compressor", "--modifier", "wanda", "-o", "recipe.yaml")
    assert outcome.err.splitlines()[-1] == "wrote recipe.yaml"
    assert "WandaPruningModifier" in Path("recipe.yaml").read_text()
    done(
        "import", "recipe.yaml", "--from", "llm-compressor", "--report", report, "-o", "back.json", "--quiet"
    )
    ours, back = Plan.read(plan), Plan.read("back.json")
    assert [(one.name, pytest.approx(one.value)) for one in ours.budgets] == [
        (one.name, one.value) for one in back.budgets
    ]
    done("allocate", report, "--allocator", "uniform", "--sparsity", "0.5", "-o", "back.json", "--quiet")


def test_an_imported_plan_is_carried_out(
    done: Command, report: Path, text_options: tuple[str, ...], here: Path
) -> None:
    names = [
        linear["name"] for block in json.loads(report.read_text())["blocks"] for linear in block["linears"]
    ]
    lines = [("linear", "unit", "value"), *((name, "density", "0.25") for name in names[1:])]
    with Path("table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    done("import", "table.csv", "--from", "csv", "--report", report, "-o", "mine.json", "--quiet")
    done(
        "compress",
        "model",
        "--plan",
        "mine.json",
        "--backend",
        "magnitude",
        *text_options,
        "-o",
        "OUT",
        "--quiet",
    )
    done("verify", "OUT")
    rows = json.loads(Path("OUT/result.json").read_text())["budgets"]
    assert {row["name"] for row in rows} == set(names[1:])
    assert all(row["achieved"] == pytest.approx(0.25, abs=0.01) for row in rows)


def test_json_says_what_the_tool_does_otherwise(done: Command, report: Path) -> None:
    done("allocate", report, "--bits", "3", "--lam", "1", "-o", "bits.json", "--quiet")
    found = done("export", "bits.json", "--to", "gguf-tensor-types", "-o", "types.txt", "--json").json
    assert found["tool"] == "gguf-tensor-types"
    assert found["file"] == "types.txt"
    assert "3 bits as q3_k (3.4375)" in found["notes"][0]


def test_bad_exports_are_refused(refused: Command, plan: Path, report: Path) -> None:
    to = ("export", plan, "-o", "file.json", "--to")
    assert "did you mean 'gptqmodel'" in refused(*to, "gptq-model")
    assert "mlx knows no budgets in density, only in bits: csv, llm-compressor take these" in refused(
        *to, "mlx"
    )
    assert "tool 'csv' takes no group-size" in refused(*to, "csv", "--group-size", "32")
    assert "modifier" in refused(*to, "llm-compressor", "--modifier", "magnitude")
    assert "missing option" in refused("export", plan, "--to", "csv")
    assert "is a file that is read" in refused("export", plan, "--to", "csv", "-o", plan)
    assert "make its folder x first" in refused("export", plan, "--to", "csv", "-o", "x/y.csv")
    assert "this is another kind of file" in refused("export", report, "--to", "csv", "-o", "y.csv")


def test_bad_imports_are_refused(refused: Command, report: Path, plan: Path) -> None:
    Path("levels.txt").write_text("model.layers.0.self_attn.q_prj: 3\n")
    Path("bytes.txt").write_bytes(b"\xff\x00")
    Path("none.txt").write_text("")
    of = ("--report", report, "-o", "new.json")
    assert refused("import", "levels.txt", "--from", "evopress", *of).startswith(
        "levels.txt: it names 'model.layers.0.self_attn.q_prj', and the report has no such linear"
    )
    assert "bytes.txt" in refused("import", "bytes.txt", "--from", "csv", *of)
    assert refused("import", "none.txt", "--from", "evopress", *of).endswith("nothing is left to compress")
    assert "cannot read nothing.txt" in refused("import", "nothing.txt", "--from", "csv", *of)
    assert "did you mean 'evopress'" in refused("import", "levels.txt", "--from", "evo-press", *of)
    of_plan = ("--report", plan, "-o", "new.json")
    assert "another kind of file" in refused("import", "levels.txt", "--from", "evopress", *of_plan)
    assert "go together" in refused("import", "levels.txt", "--from", "evopress", "--weights-diff", "8", *of)
