"""Rows appended by processes that may be killed, or run out of disk, at any moment."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from owl_compress.documents.comparison import Row
from owl_compress.documents.row_log import RowLog, RowReader
from owl_compress.errors import RequestError


def row(cell: str, **changes: Any) -> Row:
    provenance = {"versions": {}, "machine": {}, "command": "", "texts": {}}
    plain = {"cell": cell, "name": "n", "group": "g", "axes": {}, "recipe": {}, "status": "done"}
    return Row.model_validate(plain | {"provenance": provenance} | changes)


def test_rows_are_appended_and_read_again(tmp_path: Path) -> None:
    log = RowLog(tmp_path / "rows.jsonl")
    assert log.rows() == ()
    for cell in "abc":
        log.append(row(cell))
    assert [one.cell for one in log.rows()] == ["a", "b", "c"]
    assert len(log.path.read_text().splitlines()) == 3


@pytest.mark.parametrize("n_left", [1, 7, 100])
def test_half_a_line_goes_when_the_next_row_is_written(n_left: int, tmp_path: Path) -> None:
    log = RowLog(tmp_path / "rows.jsonl")
    log.append(row("a"))
    with log.path.open("a") as file:
        file.write(row("b", reason="x" * 9000).line()[:n_left])
    assert [one.cell for one in log.rows()] == ["a"]
    log.append(row("c"))
    assert [one.cell for one in log.rows()] == ["a", "c"]
    assert all(line.endswith("}") for line in log.path.read_text().splitlines())


def test_a_last_row_without_its_end_stays_when_the_next_is_written(tmp_path: Path) -> None:
    log = RowLog(tmp_path / "rows.jsonl")
    for cell in ("a", "b"):
        log.append(row(cell))
    log.path.write_text(log.path.read_text().removesuffix("\n"))
    assert [one.cell for one in log.rows()] == ["a", "b"]
    news = RowReader(log.path, log.size)
    log.append(row("c"))
    assert [one.cell for one in log.rows()] == ["a", "b", "c"]
    assert [one.cell for one in news.fresh()] == ["c"]


def test_half_a_line_goes_even_with_an_end_and_what_is_whole_stays(tmp_path: Path) -> None:
    log = RowLog(tmp_path / "rows.jsonl")
    log.append(row("a"))
    with log.path.open("a") as file:
        file.write(row("b", reason="x" * 9000).line()[:5000] + "\n")
    assert [one.cell for one in log.rows()] == ["a"]
    log.append(row("c"))
    assert [one.cell for one in log.rows()] == ["a", "c"]
    with log.path.open("a") as file:
        file.write('{"schema": "owl-compress/row/9"}\n')
    with pytest.raises(RequestError, match="line 3 is no row"):
        log.rows()


def test_what_comes_after_half_a_line_is_news(tmp_path: Path) -> None:
    log = RowLog(tmp_path / "rows.jsonl")
    assert log.size == 0
    log.append(row("a"))
    with log.path.open("a") as file:
        file.write(row("b", reason="x" * 900).line()[:-20])
    news = RowReader(log.path, log.size)
    assert news.fresh() == ()
    log.append(row("c"))
    assert [one.cell for one in news.fresh()] == ["c"]
    assert news.fresh() == ()


def test_half_a_line_may_be_all_there_is(tmp_path: Path) -> None:
    log = RowLog(tmp_path / "rows.jsonl")
    log.path.write_text(row("a", reason="x" * 9000).line()[:8000])
    log.append(row("b"))
    assert [one.cell for one in log.rows()] == ["b"]


def test_several_write_at_once(tmp_path: Path) -> None:
    log = RowLog(tmp_path / "rows.jsonl")
    threads = [
        Thread(target=lambda own: [log.append(row(f"{own}.{n}")) for n in range(20)], args=(own,))
        for own in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(log.rows()) == 80


def test_a_full_disk_leaves_the_rows_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RowLog(tmp_path / "rows.jsonl")
    log.append(row("a"))
    write: Callable[[int, bytes], int] = os.write

    def full(handle: int, content: bytes) -> int:
        write(handle, content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("owl_compress.documents.row_log.os.write", full)
    with pytest.raises(RequestError, match=r"disk full while writing .*rows.jsonl: free some space"):
        log.append(row("b"))
    monkeypatch.undo()
    assert log.path.read_text() == row("a").line()
