"""Commands of owl-compress in processes that are forked from this one, which has loaded everything."""

import atexit
import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL

import owl_compress
from owl_compress.cli import main

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_STEPS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod"}


def load_everything() -> None:
    """Import all of the package, so that a forked process need not."""
    for module in pkgutil.walk_packages(owl_compress.__path__, "owl_compress."):
        try:
            importlib.import_module(module.name)
        except ImportError:  # of packages that are not installed
            continue
    importlib.import_module("transformers.models.llama.modeling_llama")


@dataclass(frozen=True)
class Forked:
    """A process that was started; its output and the number of its steps are in files beside its folder."""

    pid: int
    log: Path
    steps: Path

    def wait(self) -> int:
        """The exit code, or the signal that ended it as a negative number."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def printed(self) -> str:
        """What it said."""
        return self.log.read_text(encoding="utf-8")

    def n_steps(self) -> int:
        """Steps in the file system that it took, of one that came to its end."""
        return int(self.steps.read_text(encoding="utf-8"))


def forked(command: Sequence[str], folder: Path, stop_at: int | None = None) -> Forked:
    """Start a command in `folder`; it is killed before step number `stop_at` in the file system."""
    started = folder.with_name(f"{folder.name}.log"), folder.with_name(f"{folder.name}.steps")
    pid = os.fork()
    if pid:
        return Forked(pid, *started)
    code = 1
    try:
        code = _run(command, folder, *started, stop_at)
    except BaseException:  # noqa: BLE001 - nothing may go on where the parent was forked
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(command: Sequence[str], folder: Path, log: Path, steps: Path, stop_at: int | None) -> int:
    os.chdir(folder)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    atexit._clear()  # noqa: SLF001 - what this process' parent wanted done at its own end
    counted = _Steps(stop_at)
    sys.addaudithook(counted)
    code: object = 0
    try:
        main(list(command))
    except SystemExit as end:
        code = end.code
    atexit._run_exitfuncs()  # noqa: SLF001 - os._exit does not
    taken = counted.taken
    steps.write_text(str(taken), encoding="utf-8")
    return code if isinstance(code, int) else 1


class _Steps:
    """Counts the steps in the file system, and ends the process before the one it is told."""

    def __init__(self, stop_at: int | None) -> None:
        self.taken = 0
        self._stop_at = stop_at

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        is_step = event in _STEPS
        if event == "open" and isinstance(arguments[2], int):
            is_step = bool(arguments[2] & _WRITES)
        if is_step:
            self.taken += 1
            if self.taken == self._stop_at:
                os.kill(os.getpid(), SIGKILL)
