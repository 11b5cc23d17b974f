"""Output folders appear whole or not at all, and nothing of somebody else's is replaced."""

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from owl_compress.documents.disk import finished_outputs, write_text
from owl_compress.documents.output_folders import check_output_folder, output_folder
from owl_compress.errors import RequestError


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


def test_an_output_folder_in_what_is_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("model/adapter", "model/deep/OUT"):
        with pytest.raises(RequestError, match=r"lies in .*model, which is read: name one outside of it"):
            check_output_folder(tmp_path / name, inputs=["gpt2", tmp_path / "model"])
    check_output_folder(tmp_path / "model-pruned", inputs=[tmp_path / "model", "builtin"])


def test_the_root_of_the_file_system_is_refused_like_any_folder_that_holds_something() -> None:
    with pytest.raises(RequestError, match="output folder / exists and is not empty"):
        check_output_folder(Path("/"))


def fill(path: Path, **options: Any) -> None:
    """Make an output folder of one file, after the check that a command makes."""
    check_output_folder(path, **options)
    with output_folder(path, **options) as folder:
        (folder / "result.json").write_text('{"schema": "owl-compress/result/1"}', encoding="utf-8")


def test_the_working_folder_is_filled_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.chdir(folder)
    before = folder.stat().st_ino
    fill(Path())
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "result.json"]
    assert folder.stat().st_ino == before


def test_a_place_where_a_volume_is_mounted_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lost+found").mkdir()  # as on a fresh disk
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == tmp_path)
    fill(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lost+found", "result.json"]


def test_a_folder_that_is_filled_is_left_empty_by_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def interrupted() -> None:
        with output_folder(Path()) as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_an_output_folder_stays_a_link(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    fill(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert [p.name for p in (tmp_path / "real").iterdir()] == ["result.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "real"]


def test_the_check_tries_what_will_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(RequestError, match=r"cannot write .*: Read-only file system"):
        check_output_folder(tmp_path / "out")


def test_a_disk_with_too_little_room_is_told_before(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"will take 1,000\S+ bytes at least, and the disk has"):
        check_output_folder(tmp_path / "new" / "out", n_bytes=10**18)
    assert list(tmp_path.iterdir()) == []


def test_an_output_of_ours_is_replaced_when_that_is_asked_for(tmp_path: Path) -> None:
    fill(tmp_path / "out")
    (tmp_path / "out" / "model-00002-of-00002.safetensors").touch()
    with pytest.raises(RequestError, match="remove it, or replace it with --overwrite"):
        fill(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt), output_folder(tmp_path / "out", overwrite=True):
        raise KeyboardInterrupt
    assert len(list((tmp_path / "out").iterdir())) == 2
    fill(tmp_path / "out", overwrite=True)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["out", "out/result.json"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("thesis.txt", "holds 'thesis.txt', which owl-compress did not write"), ("notes/a", "holds 'notes'")],
)
def test_what_others_wrote_is_never_replaced(tmp_path: Path, name: str, message: str) -> None:
    fill(tmp_path / "out")
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / name).touch()
    with pytest.raises(RequestError, match=message):
        fill(tmp_path / "out", overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "result.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RequestError, match="holds no result of owl-compress"):
        fill(tmp_path / "other", overwrite=True)


def test_the_model_that_is_read_is_not_replaced(tmp_path: Path) -> None:
    fill(tmp_path / "out")
    with pytest.raises(RequestError, match="is the model that is read"):
        check_output_folder(tmp_path / "out", overwrite=True, inputs=[f"{tmp_path}/../{tmp_path.name}/out"])


def test_work_is_kept_where_its_place_was_taken_meanwhile(tmp_path: Path) -> None:
    def race() -> None:
        with output_folder(tmp_path / "out") as folder:
            (folder / "mine").touch()
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").touch()

    with pytest.raises(RequestError, match=r"what was made lies whole in .*out-2"):
        race()
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "out", "out-2", "out-2/mine", "out/theirs",
    ]  # fmt: skip


def test_a_signal_while_an_output_takes_its_place_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        signal.raise_signal(signal.SIGINT)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    before = len(finished_outputs())
    usual = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path / "out")
    finally:
        signal.signal(signal.SIGINT, usual)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["result.json"]
    assert finished_outputs()[before:] == (tmp_path / "out",)


def test_a_signal_before_anything_was_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def interrupted(self: Path, *positional: Any, **named: Any) -> None:
        mkdir(self, *positional, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check_output_folder(tmp_path / "a" / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_name_may_be_as_long_as_names_are(tmp_path: Path) -> None:
    fill(tmp_path / ("x" * 255))
    write_text(tmp_path / ("y" * 255), "text")
    assert sorted(p.name[0] for p in tmp_path.iterdir()) == ["x", "y"]
