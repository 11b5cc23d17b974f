"""Interrupted, or out of space: the input is whole, and nothing is left that looks like a checkpoint."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from owl_compress.backends.wanda import Wanda
from owl_compress.documents.document import Document

BUDGET = ("--sparsity", "0.5")
RUN = ("run", "model", "--calib", "text.txt", "--samples", "4", "--seq-len", "32", *BUDGET)


def interrupt(*arguments: object, **options: object) -> Any:
    raise KeyboardInterrupt


def disk_is_full(*arguments: object, **options: object) -> Any:
    raise OSError(28, "No space left on device")


def safetensors_finds_disk_full(*arguments: object, **options: object) -> Any:
    raise SafetensorError('Error while serializing: I/O error: "No space left on device (os error 28)"')


def test_interrupted_while_compressing(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    compress, blocks = Wanda.compress_block_, []

    def second_is_interrupted(self: Wanda, task: Any) -> Any:
        blocks.append(task)
        return interrupt() if len(blocks) == 2 else compress(self, task)

    monkeypatch.setattr(Wanda, "compress_block_", second_is_interrupted)
    assert refused(*RUN, "-o", "OUT").startswith("interrupted: nothing was written that looks finished")
    assert len(blocks) == 2


def test_interrupted_while_saving(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "owl_compress.pipeline.folder.model_card", interrupt
    )  # the weights are written by then
    assert refused(*RUN, "-o", "a/b/OUT").startswith("interrupted")


@pytest.mark.parametrize("failure", [disk_is_full, safetensors_finds_disk_full])
def test_disk_full_while_writing_the_weights(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, failure: Callable[..., Any]
) -> None:
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", failure)
    message = refused(*RUN, "-o", "OUT")
    assert message == "disk full while writing OUT: free some space and run again"


def test_disk_full_while_writing_the_result(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Document, "write", disk_is_full)
    assert refused(*RUN, "-o", "OUT").startswith("disk full while writing OUT")


def test_disk_full_while_writing_a_plan(
    here: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, report: Path
) -> None:
    older = '{"schema": "owl-compress/plan/1"}'
    (here / "plan.json").write_text(older)
    monkeypatch.setattr("os.fdopen", disk_is_full)
    assert refused("allocate", report, *BUDGET, "-o", "plan.json").startswith(
        "disk full while writing plan.json"
    )
    assert (here / "plan.json").read_text() == older


@pytest.fixture
def tiny_disk(here: Path) -> Iterator[Path]:
    """A file system of 96 KiB: enough for a report, not for the weights of the tiny model."""
    folder = here.parent / f"{here.name}-disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "none", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_told_before_anything_is_compressed(
    refused: Callable[..., str], tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wanda, "compress_block_", lambda *_: pytest.fail("compressed"))
    message = refused(*RUN, "-o", tiny_disk / "OUT")
    assert message.startswith(f"output folder {tiny_disk / 'OUT'} will take 177,792 bytes at least, and the")
    assert list(tiny_disk.iterdir()) == []


def test_a_disk_that_is_really_full(
    refused: Callable[..., str], tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when others write to it meanwhile."""
    monkeypatch.setattr("owl_compress.pipeline.execution.check_output_folder", lambda *_, **__: None)
    message = refused(*RUN, "-o", tiny_disk / "OUT")
    assert message == f"disk full while writing {tiny_disk / 'OUT'}: free some space and run again"
    assert list(tiny_disk.iterdir()) == []


@pytest.mark.parametrize(
    "kind",
    [
        signal.SIGTERM,  # which does nothing of the sort unless the command heeds it
        # The quick tests of `owl_compress.interrupts` show that all three are heeded alike.
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_real_signal(here: Path, kind: signal.Signals) -> None:
    """In a process of its own, while the first of many windows are compressed."""
    (here / "long.txt").write_text("owls at night " * 5_000)
    before = sorted(here.rglob("*"))
    # A shell that starts the tests in the background has them, and what they start, ignore interrupts.
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [
        sys.executable, "-c", f"{heeding}; from owl_compress.cli import main; main()", "run", "model",
        "--calib", "long.txt", "--samples", "500", "--seq-len", "128", *BUDGET,
        "--backend", "sparsegpt", "-o", "OUT",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        lines = iter(process.stderr.readline, b"")
        assert next(lines) == b"loading model\n"
        assert any(line.startswith(b"measuring blocks: 3/3") for line in lines)
        time.sleep(0.3)
        process.send_signal(kind)
        rest = process.stderr.read().decode()
        assert process.stdout.read() == b""
    assert process.returncode == 2
    assert rest.startswith("owl-compress: interrupted: nothing was written that looks finished; run the same")
    assert rest.count("\n") == 1
    assert sorted(here.rglob("*")) == before


def test_a_run_fills_an_empty_working_folder(
    here: Path, done: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "empty").mkdir()
    monkeypatch.chdir(here / "empty")
    run = ("run", "../model", "--calib", "../text.txt", *RUN[4:])
    done(*run, "-o", ".")
    assert {"config.json", "result.json", "recipe.yaml"} <= {path.name for path in (here / "empty").iterdir()}


def test_an_interrupt_after_the_output_is_whole_says_so(
    here: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owl_compress.cli.run.result_table", interrupt)
    outcome = cli(*RUN, "-o", "OUT")
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1] == "owl-compress: interrupted, after OUT had been written whole"


def test_an_output_of_ours_is_replaced_when_that_is_said(
    here: Path, done: Callable[..., Any], refused: Callable[..., str]
) -> None:
    done(*RUN, "-o", "OUT", "--quiet")
    assert "remove it, or replace it with --overwrite" in refused(*RUN, "-o", "OUT")
    assert "OUT exists and is not empty" in refused(*RUN, "-o", "OUT", "--dry-run")
    assert "is the model that is read" in refused("run", "OUT", *RUN[2:], "-o", "OUT", "--overwrite")
    done("run", "model", "--calib", "text.txt", *RUN[4:-1], "0.7", "-o", "OUT", "--overwrite", "--quiet")
    assert json.loads((here / "OUT" / "plan.json").read_text())["target"] == pytest.approx(0.3)
    assert not [path for path in here.iterdir() if path.name.startswith(".")]


def test_an_input_is_not_written_over(here: Path, refused: Callable[..., str], report: Path) -> None:
    for path in ("report.json", "./report.json", report):
        assert "is a file that is read" in refused("allocate", "report.json", *BUDGET, "-o", path)
    text = ("--calib", "text.txt", "--samples", "4", "--seq-len", "32")
    assert "text.txt is a file that is read" in refused(
        "measure", "model", *text, "-o", "../" + here.name + "/text.txt"
    )
    assert "was not written by owl-compress" in refused("measure", "model", *text, "-o", "other.txt")
