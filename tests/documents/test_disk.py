"""Files and output folders are whole or absent, and what cannot be written is refused in one line."""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from owl_compress.documents.disk import check_output_file, check_output_folder, output_folder, write_text
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


def test_an_output_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out"
    with output_folder(path) as folder:
        (folder / "a").write_text("x", encoding="utf-8")
        assert not path.exists()
    assert [p.name for p in path.iterdir()] == ["a"]
    assert [p.name for p in path.parent.iterdir()] == ["out"]


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    with output_folder(path) as folder:
        (folder / "a").touch()
    assert [p.name for p in path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (RequestError("no"), RequestError, "no"),
        (OSError(errno.ENOSPC, "No space left on device"), RequestError, "disk full while writing"),
        (OSError(errno.EACCES, "Permission denied"), RequestError, "cannot write .*: Permission denied"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), RequestError, "disk full while"),
        (RuntimeError(f"I/O error: over quota (os error {errno.EDQUOT})"), RequestError, "disk full while"),
        (
            RuntimeError(f"I/O error: too large (os error {errno.EFBIG})"),
            RequestError,
            "write .*: File too large",
        ),
        (RuntimeError("something else"), RuntimeError, "something else"),
    ],
)
def test_an_output_folder_that_fails_is_not_there(
    tmp_path: Path, error: BaseException, expected: type[BaseException], message: str
) -> None:
    def fill() -> None:
        with output_folder(tmp_path / "deep" / "out") as folder:
            (folder / "half").write_text("x", encoding="utf-8")
            raise error

    with pytest.raises(expected, match=message):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(RequestError, match=f"output folder {tmp_path} exists and is not empty"):
        check_output_folder(tmp_path)
    with pytest.raises(RequestError, match="is a file"):
        check_output_folder(tmp_path / "mine")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_an_output_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is a folder"):
        check_output_file(tmp_path)
    with pytest.raises(RequestError, match="make its folder"):
        check_output_file(tmp_path / "none" / "plan.json")
    check_output_file(tmp_path / "plan.json")
