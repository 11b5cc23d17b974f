"""Rows of a comparison: one line each, read again as they were, whatever a killed process left at the end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from owl_compress.documents.comparison import ROWS, Row, Status, by_group, read_results, read_rows
from owl_compress.errors import RequestError

PROVENANCE = {"versions": {"torch": "2"}, "machine": {"cpu": "x"}, "command": "owl-compress", "texts": {}}


@pytest.fixture
def make_row() -> Callable[..., Row]:
    """A function that makes a row with some values changed."""

    def make(cell: str = "a", **changes: Any) -> Row:
        plain: dict[str, Any] = {
            "cell": cell, "name": "wanda 0.5 owl", "group": "wanda 0.5", "axes": {"allocator": "owl"},
            "recipe": {"model": "m", "seed": 1}, "status": "done", "provenance": PROVENANCE,
        }  # fmt: skip
        return Row.model_validate(plain | changes)

    return make


def test_a_row_survives_its_line(make_row: Callable[..., Row]) -> None:
    record = {
        "perplexity": 30.5, "tokens": 511, "windows": 1, "seq_len": 512, "dtype": "float32", "data": "tést",
        "bos": "first", "n_params": 7,
    }  # fmt: skip
    accuracy = {
        "task": "boolq", "metric": "acc", "value": 0.5, "stderr": 0.01, "samples": 100, "shots": 0,
        "version": "1",
    }  # fmt: skip
    row = make_row(
        perplexity={"tést": record},
        tasks={"boolq": accuracy},
        budgets={"model.layers.0": 0.5},
        unit="density",
    )
    line = row.line()
    assert line.endswith("}\n")
    assert line.count("\n") == 1
    assert line.isascii()
    assert Row.parse(line) == row
    assert row.seed == 1
    assert row.is_measured
    assert not make_row(status="refused", reason="no").is_measured


def test_rows_come_in_the_order_of_their_cells_and_the_last_of_a_cell_counts(
    tmp_path: Path, make_row: Callable[..., Row]
) -> None:
    rows = [make_row("a", status="refused"), make_row("b"), make_row("a", achieved=0.5)]
    (tmp_path / ROWS).write_text("".join(row.line() for row in rows))
    found = read_results(tmp_path)
    assert [(row.cell, row.status, row.achieved) for row in found] == [
        ("a", Status.DONE, 0.5), ("b", Status.DONE, None),
    ]  # fmt: skip


@pytest.mark.parametrize("n_left", [1, 20, 300, -1])
def test_a_last_line_that_is_not_whole_is_passed_over(
    n_left: int, tmp_path: Path, make_row: Callable[..., Row]
) -> None:
    line = make_row("b").line()
    (tmp_path / ROWS).write_text(make_row("a").line() + line[:n_left].removesuffix("}"))
    assert [row.cell for row in read_rows(tmp_path / ROWS)] == ["a"]


@pytest.mark.parametrize("broken", ["{", '{"schema": "owl-compress/plan/1"}', "[]", '{"a": 1, "a": 2}'])
def test_a_broken_line_before_the_last_is_told(
    broken: str, tmp_path: Path, make_row: Callable[..., Row]
) -> None:
    (tmp_path / ROWS).write_text(f"{make_row('a').line()}{broken}\n{make_row('b').line()}")
    with pytest.raises(RequestError, match=r"rows.jsonl: line 2 is no row \("):
        read_rows(tmp_path / ROWS)


def test_a_folder_without_rows_is_none_of_ours(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"holds no rows.jsonl: name a folder that `owl-compress compare`"):
        read_results(tmp_path)


def test_rows_by_group_leave_the_dense_model_out(make_row: Callable[..., Row]) -> None:
    dense, one, two, other = make_row("d", dense=True), make_row("1"), make_row("2"), make_row("3", group="o")
    assert by_group((dense, one, other, two)) == {"wanda 0.5": (one, two), "o": (other,)}
