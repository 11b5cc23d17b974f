"""A comparison as it lies in a folder."""

from pathlib import Path
from typing import Any

import pytest

from owl_compress.documents.compared import is_comparison, read_comparison
from owl_compress.documents.comparison import Row, RowProvenance, Status
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError


def row(cell: str, **changes: Any) -> Row:
    content: dict[str, Any] = {
        "cell": cell, "name": cell, "group": "all", "axes": {}, "recipe": {"sparsity": 0.5},
        "status": Status.DONE, "unit": Unit.DENSITY, "asked": 0.5, "achieved": 0.5,
        "provenance": RowProvenance(versions={}, machine={}, command="", texts={}),
    }  # fmt: skip
    return Row(**content | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [row("a").line(), row("b", achieved=0.6).line(), row("c").line()[:-30]]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    (tmp_path / "grid.yaml").write_text("baseline: owl\nsparsity: [0.5]\n")
    return tmp_path


def test_rows_are_read_up_to_one_that_was_cut_and_judged_by_their_group(folder: Path) -> None:
    for path in (folder, folder / "rows.jsonl"):
        assert is_comparison(path)
        found = read_comparison(path)
        assert [one.cell for one in found.rows] == ["a", "b"]
        assert [one.status for one in found.rows] == ["done", "drifted"]
        assert found.baseline == "owl"


def test_rows_of_other_grids_are_left_out_where_the_folder_says_which_are_of_the_last(folder: Path) -> None:
    (folder / "shared").mkdir()
    cells = folder / "shared" / "cells.json"
    cells.write_text('["b", "not yet there"]')
    assert [one.cell for one in read_comparison(folder).rows] == ["b"]
    assert [one.cell for one in read_comparison(folder / "rows.jsonl").rows] == ["a", "b"]
    cells.write_text('["b", ')
    assert [one.cell for one in read_comparison(folder).rows] == ["a", "b"]


def test_a_grid_that_is_missing_or_broken_costs_nothing_but_itself(folder: Path) -> None:
    (folder / "grid.yaml").write_text("baseline: [")
    assert read_comparison(folder).baseline == "uniform"
    (folder / "grid.yaml").unlink()
    assert read_comparison(folder).grid is None


def test_a_folder_without_rows_or_with_a_broken_one_is_refused(folder: Path) -> None:
    (folder / "rows.jsonl").write_text('{"cut\n' + row("a").line())
    with pytest.raises(RequestError, match="line 1 is no row"):
        read_comparison(folder)
    (folder / "rows.jsonl").write_text("")
    with pytest.raises(RequestError, match="has no rows yet"):
        read_comparison(folder)
    assert not is_comparison(folder / "grid.yaml")
