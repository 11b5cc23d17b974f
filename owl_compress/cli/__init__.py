"""The command line: one module per group of commands, and one place that turns errors into exit codes."""

import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from typer.main import get_command

from owl_compress.cli.application import application
from owl_compress.errors import RequestError

_DONE, _DEFECT, _UNSATISFIABLE = 0, 1, 2

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
    # What ends a batch job early is an interrupt like any other: temporary folders go with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    sys.exit(_exit_code(arguments))


def _exit_code(arguments: list[str] | None) -> int:
    with _own_log_on_stderr():
        try:
            return _invoke(sys.argv[1:] if arguments is None else arguments)
        except RequestError as error:
            return _refuse(str(error))
        except (KeyboardInterrupt, typer.Abort):
            return _refuse("interrupted: nothing was written that looks finished; run again to start over")
        except typer.TyperException as error:
            return _refuse_usage(error)
        except BrokenPipeError:  # whoever read our answer has had enough of it, as in `... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return _DONE
        except Exception:  # noqa: BLE001 - whatever else escapes is a defect, and says so
            traceback.print_exc()
            sys.stderr.write("owl-compress: this is a defect of ours; please report the lines above\n")
            return _DEFECT


def _invoke(arguments: list[str]) -> int:
    """Run one command. Not by calling it: that turns Ctrl-C and a closed pipe into silent exit codes."""
    command = get_command(application(arguments))
    try:
        with command.make_context("owl-compress", arguments) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    sys.stdout.flush()
    return _DONE


def _refuse(message: str) -> int:
    sys.stderr.write(f"owl-compress: {' '.join(message.split())}\n")
    return _UNSATISFIABLE


def _refuse_usage(error: typer.TyperException) -> int:
    """Refuse a command line that is not one of ours, with the way to its help."""
    problem = error.format_message().strip().removesuffix(".")
    if not problem:  # no command at all: the help is on stdout already
        return _UNSATISFIABLE
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "owl-compress"
    return _refuse(f"{problem[0].lower()}{problem[1:]} (see {command} --help)")


class _StderrHandler(logging.Handler):
    """Writes to whatever sys.stderr is when there is something to say."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"owl-compress: {self.format(record)}\n")


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
