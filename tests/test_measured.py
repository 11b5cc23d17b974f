"""docs/measured.md and docs/studies.md say what the rows of the benchmarks say."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("script", "page"), [("tables.py", "measured.md"), ("study_page.py", "studies.md")])
def test_the_page_is_made_from_the_rows(script: str, page: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / script)]
    made = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    written = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert made.stdout == written, f"run: python benchmarks/{script} > docs/{page}"


def test_every_file_of_rows_has_a_table() -> None:
    tables = (ROOT / "benchmarks" / "tables.py").read_text(encoding="utf-8")
    rows = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.jsonl")}
    assert rows
    assert all(f'_rows("{name}")' in tables or f'_compared("{name}")' in tables for name in rows), rows


def test_every_study_and_every_file_of_its_rows_is_on_the_page() -> None:
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    benchmarks = ROOT / "benchmarks"
    names = [path.stem for path in (benchmarks / "studies").glob("*.yaml")]
    assert names
    assert all(f"study.py studies/{name} " in page for name in names), names
    rows = {path.stem for path in (benchmarks / "results" / "studies").glob("*.jsonl")}
    assert rows <= {*names, "lod"}
