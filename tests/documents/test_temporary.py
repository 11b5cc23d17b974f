"""Temporary files of the dead go, those of the living stay, and names are never too long."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from owl_compress.documents.disk import write_text
from owl_compress.documents.temporary import held, is_temporary, remove_dead, temporary_name


@pytest.fixture
def dead_process() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        process.wait()
    return process.pid


def name_of(process: int, name: str = "OUT") -> str:
    """A temporary name as another process would have given it."""
    return temporary_name(name).replace(f"-{os.getpid()}.", f"-{process}.")


@pytest.mark.parametrize("name", ["OUT", "x" * 255, "ü" * 127, "a.b.partial"])
def test_a_temporary_name_fits_and_is_known(tmp_path: Path, name: str) -> None:
    temporary = temporary_name(name)
    (tmp_path / temporary).mkdir()
    assert is_temporary(temporary)
    assert temporary_name(name) != temporary


def test_what_the_dead_left_goes(tmp_path: Path, dead_process: int) -> None:
    (tmp_path / name_of(dead_process)).mkdir()
    (tmp_path / name_of(dead_process) / "half").parent.mkdir()
    (tmp_path / name_of(dead_process)).write_text("half")
    remove_dead(tmp_path, "OUT")
    assert list(tmp_path.iterdir()) == []


def test_writing_a_file_removes_what_the_dead_left_of_it(tmp_path: Path, dead_process: int) -> None:
    (tmp_path / name_of(dead_process, "table.md")).write_text("half")
    (tmp_path / temporary_name("table.md")).write_text("of this process, which lives")
    (tmp_path / name_of(dead_process, "other.md")).write_text("half")
    write_text(tmp_path / "table.md", "whole")
    left = sorted(path.name.split(".")[1] for path in tmp_path.iterdir() if is_temporary(path.name))
    assert left == ["other", "table"]
    assert (tmp_path / "table.md").read_text() == "whole"


def test_what_may_be_in_use_stays(tmp_path: Path, dead_process: int) -> None:
    kept = {
        temporary_name("OUT"),  # of a process that lives
        name_of(dead_process, "OTHER"),
        ".OUT.abc123.partial",  # nobody knows of whom
        name_of(dead_process).replace(".partial", ".txt"),
        name_of(dead_process).replace(".OUT.", ".OUT.00000000-", 1),
    }
    for name in kept:
        (tmp_path / name).mkdir()
    remove_dead(tmp_path, "OUT")
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_what_is_locked_stays(tmp_path: Path, dead_process: int) -> None:
    """A process elsewhere, whose number is not in use here, may share this folder."""
    folder = tmp_path / name_of(dead_process)
    folder.mkdir()
    with held(folder):
        remove_dead(tmp_path, "OUT")
        assert folder.is_dir()
    remove_dead(tmp_path, "OUT")
    assert not folder.exists()


def test_a_folder_that_cannot_be_read_does_no_harm(tmp_path: Path) -> None:
    remove_dead(tmp_path / "none", "OUT")
