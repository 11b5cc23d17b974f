"""What reaches a terminal: names that obey nobody, and streams that may go away without ending the work."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from owl_compress.cli.console import Output
from owl_compress.cli.sheet import Column, Sheet
from owl_compress.cli.terminal import Guarded
from owl_compress.plain_text import plain

COMMAND = f"{sys.executable} -m owl_compress"
NASTY = "[v2]m [/x] :smile: \x1b[2J\x07\r \u202eabc\u2028 \ud800 é 漢"


def in_shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, in which OWL stands for the command."""
    return subprocess.run(
        line.replace("OWL", COMMAND), shell=True, executable="/bin/bash", cwd=folder,
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_what_a_terminal_would_obey_is_spelled_out() -> None:
    assert plain("model.layers.7 é 漢") == "model.layers.7 é 漢"
    shown = plain(NASTY)
    assert shown == r"[v2]m [/x] :smile: \x1b[2J\x07\r \u202eabc\u2028 \ud800 é 漢"
    assert shown.isprintable()


def test_a_table_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    columns = (Column(f"heading {NASTY}", (NASTY,), is_text=True), Column("value", ("[bold]1[/bold]",)))
    Output().answer({}, Sheet(NASTY, columns, (f"note {NASTY}",)))
    shown = capsys.readouterr().out
    assert shown.count(plain(NASTY)) == 4
    assert "[bold]1[/bold]" in shown
    assert "\x1b" not in shown


def test_names_in_documents_reach_the_terminal_spelled_out(
    cli: Callable[..., Any], report: Path, edit_json: Callable[..., None]
) -> None:
    def rename(content: Any) -> None:
        content["model"]["id"] = "mine[/x]\x1b[31m"
        for block in content["blocks"]:
            block["name"] = f"[red]{block['name']}\x1b]0;title\x07"

    edit_json(report, rename)
    outcome = cli("allocate", report, "--sparsity", "0.5", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "\x1b" not in outcome.out
    assert "\x07" not in outcome.out
    assert "[red]" in outcome.out
    outcome = cli("allocate", report, "--sparsity", "0.5", "--metric", "x\x1b[31m", "--dry-run")
    assert outcome.code == 2
    assert r"\x1b[31m" in outcome.err
    assert "\x1b" not in outcome.err


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), BrokenPipeError(), ValueError("closed")])
def test_progress_is_lost_and_the_work_goes_on(error: Exception) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise error

        def flush(self) -> None:
            raise error

    stream = Guarded(Broken(), lambda _: None)
    assert stream.write("abc") == 3
    stream.flush()
    assert stream.isatty() is False


def test_remarks_on_a_stream_that_is_broken_do_not_end_a_command(
    done: Callable[..., Any], run_options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Broken())
    done(*run_options, "-o", "OUT")
    assert Path("OUT/result.json").is_file()


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("OWL allocate report.json --sparsity 0.5 -o p.json 2>/dev/full >/dev/null", 0, ""),
        ("OWL allocate report.json --sparsity 0.5 -o p.json >&-", 0, "wrote p.json\n"),
        ("OWL allocate report.json --sparsity 0.5 -o p.json >/dev/null 2>&-", 0, ""),
        ("OWL allocate report.json --sparsity 0.5 -o p.json <&- >&- 2>&-", 0, ""),
        (
            "OWL allocate report.json --sparsity 0.5 -o p.json >/dev/full",
            2,
            "owl-compress: the answer cannot be written to stdout (No space left on device): p.json had been "
            "written whole\n",
        ),
        ("OWL allocate report.json --sparsity 0.5 -o p.json --quiet | true; exit ${PIPESTATUS[0]}", 0, ""),
        ("OWL allocate report.json --sparsity 0.5 -o p.json | true; exit ${PIPESTATUS[0]}", 141, ""),
        ("OWL allocate report.json --sparsity 0.5 -o p.json 2>&1 | true; exit ${PIPESTATUS[0]}", 141, ""),
    ],
)
def test_streams_that_cannot_be_written(report: Path, line: str, code: int, message: str) -> None:
    ran = in_shell(line, report.parent)
    assert (ran.returncode, ran.stderr) == (code, message)
    assert (report.parent / "p.json").read_text().startswith('{\n "schema"')


def test_names_that_a_stream_cannot_encode_are_spelled_out(report: Path) -> None:
    ran = in_shell("PYTHONIOENCODING=ascii OWL allocate 'no漢.json' --sparsity 0.5 -o p.json", report.parent)
    assert ran.returncode == 2
    assert r"no\u6f22.json" in ran.stderr


def test_a_working_folder_that_is_gone_is_told(here: Path) -> None:
    (here / "gone").mkdir()
    ran = in_shell("cd gone; rmdir ../gone; OWL allocate r.json --sparsity 0.5 -o p.json", here)
    assert ran.returncode == 2
    assert ran.stderr.startswith("owl-compress: the working folder cannot be found (")
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize("as_json", [True, False])
def test_an_answer_that_nobody_reads_ends_the_command(as_json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError):
        Output(as_json=as_json).answer({"a": 1}, Sheet("a", (Column("b", ("c",)),)))
