"""The command line: one module per group of commands, and one place that turns errors into exit codes."""

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import typer
from typer.main import get_command

from owl_compress.cli.application import application
from owl_compress.cli.terminal import UnansweredError, drop_unwritten, guarded_streams, open_streams, tell
from owl_compress.cli.usage import usage_problem
from owl_compress.documents.disk import finished_outputs
from owl_compress.errors import RequestError
from owl_compress.interrupts import heed_no_more, heed_signals, is_interrupt
from owl_compress.torchrun import rank_and_world_size

_COMPLETION = "_OWL_COMPRESS_COMPLETE"
"""Set by the shell where it asks for a completion, see typer."""

_OF_SHELLS = {"--show-completion", "--install-completion"}
_SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")

_DONE, _DEFECT, _UNSATISFIABLE = 0, 1, 2
_READER_WENT = 128 + 13
"""As a shell reports a program that SIGPIPE ended."""

# What the libraries below have to say to programmers is not for users; what is, is said by our own errors.
_QUIET_LIBRARIES = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 the request cannot be satisfied, 1 a defect of ours."""
    for name, value in _QUIET_LIBRARIES.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    open_streams()
    heed_signals()
    try:
        code = _exit_code(arguments)
    except KeyboardInterrupt:  # at the very end, when all had been said
        code = _UNSATISFIABLE
    with heed_no_more():
        drop_unwritten()
        sys.exit(code)


def _exit_code(arguments: list[str] | None) -> int:
    n_finished = len(finished_outputs())
    with guarded_streams(), _own_log_on_stderr():
        try:
            _check_working_folder()
            return _invoke(sys.argv[1:] if arguments is None else arguments)
        except typer.TyperException as error:
            return _refuse_usage(error)
        except BrokenPipeError:  # whoever read our answer has had enough of it, as in `... | head`
            return _READER_WENT
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - what is none of ours is a defect
            reason = _reason(error, finished_outputs()[n_finished:])
            if _follows() and reason is not None and not reason.startswith("process "):
                return _UNSATISFIABLE  # all of them find the same, and the first one says it
            return _defect() if reason is None else _refuse(reason)


def _reason(error: BaseException, finished: Sequence[Path]) -> str | None:
    """Why a command ended early, in words for its user; None for what is a defect of ours."""
    whole = f"{' and '.join(map(str, finished))} had been written whole" if finished else ""
    if isinstance(error, RequestError):
        return str(error)
    if isinstance(error, UnansweredError):
        return f"the answer cannot be written to stdout ({error}): {whole or 'send it elsewhere'}"
    if is_interrupt(error) or isinstance(error, typer.Abort):
        if error.args and str(error).startswith("interrupted"):
            return str(error)  # and what of it is kept
        if whole:
            return f"interrupted, after {whole}"
        return "interrupted: nothing was written that looks finished; run the same command again"
    return None


def _follows() -> bool:
    """Whether torchrun started this process beside another, which leads."""
    rank, of = rank_and_world_size()
    return rank > 0 and of > 1


def _defect() -> int:
    for line in traceback.format_exc().splitlines():
        tell(line)
    tell("owl-compress: this is a defect of ours; please report the lines above")
    return _DEFECT


def _check_working_folder() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise RequestError(
            f"the working folder cannot be found ({error.strerror}): change to one that is there"
        ) from error


def _invoke(arguments: list[str]) -> int:
    """Run one command. Not by calling it: that turns Ctrl-C and a closed pipe into silent exit codes."""
    if _COMPLETION in os.environ:
        return _complete()
    if _OF_SHELLS & {*arguments[:1]}:
        _check_shell()
    command = get_command(application(arguments))
    code = _DONE
    try:
        with command.make_context("owl-compress", arguments) as context:
            command.invoke(context)
    except typer.Exit as end:
        code = end.exit_code
    sys.stdout.flush()
    return code


def _check_shell() -> None:
    """Refuse to complete in a shell that cannot be told, or is none of those that can.

    Raises:
        RequestError: see above.
    """
    try:
        name, _ = import_module("shellingham").detect_shell()
    except Exception as error:  # noqa: BLE001 - it looks at processes, and the systems for that differ
        name, reason = "", f"the shell cannot be detected ({error or type(error).__name__})"
    else:
        reason = f"there is no completion for the shell {name!r}"
    if name not in _SHELLS:
        raise RequestError(
            f"{reason}: call this from {', '.join(_SHELLS)}, or write {_COMPLETION}=source_bash owl-compress"
        )


def _complete() -> int:
    """Answer the shell, which asks for a completion: of the command that it names, no method being loaded."""
    words = (os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")).split()
    try:
        get_command(application(words[1:2])).main(args=[], prog_name="owl-compress")
    except SystemExit as end:
        return int(end.code or _DONE)
    return _DONE


def _refuse(message: str) -> int:
    tell(f"owl-compress: {' '.join(message.split())}")
    return _UNSATISFIABLE


def _refuse_usage(error: typer.TyperException) -> int:
    """Refuse a command line that is not one of ours; without any command the help is on stdout already."""
    problem = usage_problem(error)
    return _refuse(problem) if problem else _UNSATISFIABLE


class _StderrHandler(logging.Handler):
    """Writes to whatever sys.stderr is when there is something to say."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(f"owl-compress: {self.format(record)}")


@contextmanager
def _own_log_on_stderr() -> Iterator[None]:
    """Show the warnings of our own modules, and nobody else's."""
    ours, handler, nobody = logging.getLogger("owl_compress"), _StderrHandler(), logging.NullHandler()
    ours.addHandler(handler)
    logging.getLogger().addHandler(nobody)  # without any handler Python would print warnings by itself
    try:
        yield
    finally:
        ours.removeHandler(handler)
        logging.getLogger().removeHandler(nobody)
