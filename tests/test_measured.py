"""docs/measured.md says what the rows of the benchmarks say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_is_made_from_the_rows() -> None:
    script = ROOT / "benchmarks" / "tables.py"
    made = subprocess.run([sys.executable, str(script)], capture_output=True, encoding="utf-8", check=True)
    page = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")
    assert made.stdout == page, "run: python benchmarks/tables.py > docs/measured.md"


def test_every_file_of_rows_has_a_table() -> None:
    tables = (ROOT / "benchmarks" / "tables.py").read_text(encoding="utf-8")
    rows = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.jsonl")}
    assert rows
    assert all(f'_rows("{name}")' in tables for name in rows), rows


def test_the_page_of_studies_is_made_from_theirs() -> None:
    script = ROOT / "benchmarks" / "study_page.py"
    made = subprocess.run([sys.executable, str(script)], capture_output=True, encoding="utf-8", check=True)
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    assert made.stdout == page, "run: python benchmarks/study_page.py > docs/studies.md"


def test_every_study_and_every_file_of_its_rows_is_on_the_page() -> None:
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    benchmarks = ROOT / "benchmarks"
    names = [path.stem for path in (benchmarks / "studies").glob("*.yaml")]
    assert names
    assert all(f"study.py studies/{name} " in page for name in names), names
    rows = {path.stem for path in (benchmarks / "results" / "studies").glob("*.jsonl")}
    assert rows <= {*names, "lod"}
