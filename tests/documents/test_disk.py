"""Files are whole or absent, and what cannot be written is refused in one line."""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from owl_compress.documents.disk import check_output_file, write_text
from owl_compress.documents.output_folders import check_output_folder
from owl_compress.documents.outputs import EXPORT
from owl_compress.errors import RequestError


class FullDisk(io.StringIO):
    """A file on a disk that is full."""

    code = errno.ENOSPC

    def write(self, text: str) -> int:
        raise OSError(self.code, os.strerror(self.code))


def failing_fdopen(make: Callable[[], Any]) -> Callable[..., Any]:
    def fdopen(handle: int, *_: Any, **__: Any) -> Any:
        os.close(handle)
        return make()

    return fdopen


@pytest.mark.parametrize("existing", [None, "what was there"])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: str | None
) -> None:
    path = tmp_path / "plan.json"
    if existing is not None:
        path.write_text(existing, encoding="utf-8")
    monkeypatch.setattr("owl_compress.documents.disk.os.fdopen", failing_fdopen(FullDisk))
    with pytest.raises(RequestError, match=f"disk full while writing {path}: free some space"):
        write_text(path, "new")
    assert [(p.name, p.read_text(encoding="utf-8")) for p in tmp_path.iterdir()] == (
        [] if existing is None else [("plan.json", existing)]
    )


def test_an_interrupt_while_writing_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(io.StringIO):
        def write(self, text: str) -> int:
            raise KeyboardInterrupt

    path = tmp_path / "plan.json"
    path.write_text("old", encoding="utf-8")
    monkeypatch.setattr("owl_compress.documents.disk.os.fdopen", failing_fdopen(Interrupted))
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert [(p.name, p.read_text(encoding="utf-8")) for p in tmp_path.iterdir()] == [("plan.json", "old")]


def test_writing_into_a_missing_folder(tmp_path: Path) -> None:
    path = tmp_path / "none" / "plan.json"
    with pytest.raises(RequestError, match=f"cannot write {path}: No such file"):
        write_text(path, "x")


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_text(path, "a much longer text")
    write_text(path, "short")
    assert path.read_text(encoding="utf-8") == "short"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_output_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is a folder"):
        check_output_file(tmp_path)
    with pytest.raises(RequestError, match="make its folder"):
        check_output_file(tmp_path / "none" / "plan.json")
    check_output_file(tmp_path / "plan.json")


@pytest.mark.parametrize("name", ["x" * 256, os.fsdecode(b"out\xff"), "", "~nosuchuser/out"])
@pytest.mark.parametrize("check", [check_output_folder, check_output_file])
def test_a_name_that_cannot_be_written_is_refused(
    tmp_path: Path, name: str, check: Callable[..., None]
) -> None:
    path = f"{tmp_path}/{name}" if name and name[0] != "~" else name
    with pytest.raises(RequestError, match=r"^(path|'' is no path)"):
        check(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("check", [check_output_folder, check_output_file])
def test_a_loop_of_links_is_refused(tmp_path: Path, check: Callable[..., None]) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(RequestError, match="cannot write"):
        check(tmp_path / "a")


def test_an_input_a_device_and_other_files_are_not_written_over(tmp_path: Path) -> None:
    report, text = tmp_path / "report.json", tmp_path / "text.txt"
    report.write_text('{\n "schema": "owl-compress/report/1",\n "x": 1}', encoding="utf-8")
    text.write_text("prose", encoding="utf-8")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    (tmp_path / "link").symlink_to(report)
    for path, options, message in (
        (report, {"inputs": [report]}, "is a file that is read"),
        (tmp_path / "link", {"inputs": ["builtin", report]}, "is a file that is read"),
        (report, {"kind": "plan"}, "exists and holds a report"),
        (text, {"kind": "report"}, "exists and was not written by owl-compress"),
        (report, {"kind": EXPORT}, "exists and holds a report"),
        (weights, {"kind": EXPORT}, "exists and was not written by owl-compress"),
        (Path(os.devnull), {}, "is no file but a device"),
    ):
        with pytest.raises(RequestError, match=message):
            check_output_file(path, **options)  # type: ignore[arg-type]
    check_output_file(report, kind="report")
    check_output_file(text, kind=EXPORT)
    assert text.read_text(encoding="utf-8") == "prose"


def test_a_link_to_a_file_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "plan.json")
    check_output_file(tmp_path / "link")
    write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "plan.json").read_text(encoding="utf-8") == "x"
