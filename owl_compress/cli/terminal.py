"""What may reach a terminal or a log, and what becomes of it where nobody can read."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from owl_compress.plain_text import plain


def tell(text: str) -> None:
    """Write one line for people to stderr."""
    sys.stderr.write(f"{plain(text)}\n")


class UnansweredError(Exception):
    """The answer of a command cannot be written to stdout; the message is the system's."""


class Guarded:
    """A stream that hands what goes wrong with it to somebody else."""

    def __init__(self, stream: TextIO, deal_with: Callable[[Exception], None]) -> None:
        self._stream, self._deal_with = stream, deal_with

    def write(self, text: str) -> int:
        """Write what can be written."""
        try:
            self._stream.write(text)
        except (OSError, ValueError) as error:
            self._deal_with(error)
        return len(text)

    def flush(self) -> None:
        """Pass on what can be passed on."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._deal_with(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Guard both streams while the block lasts.

    Progress and remarks on stderr are lost where nobody can read them, and the work goes on. An answer on
    stdout is not: BrokenPipeError where its reader has gone, `UnansweredError` for any other reason.
    """
    out, err = sys.stdout, sys.stderr
    guarded: Any = (Guarded(out, _unanswered), Guarded(err, lambda _: None))
    sys.stdout, sys.stderr = guarded
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err


def _unanswered(error: Exception) -> None:
    if isinstance(error, BrokenPipeError):
        raise error
    raise UnansweredError(getattr(error, "strerror", None) or str(error)) from error


def open_streams() -> None:
    """Give a process that was started with closed streams ones that swallow everything.

    Otherwise the next file that is opened would get their numbers, and what libraries write to them.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        reconfigure = getattr(getattr(sys, name), "reconfigure", None)
        if reconfigure:
            reconfigure(errors="backslashreplace")


def drop_unwritten() -> None:
    """Let go of what no stream took, which the interpreter would try once more, and complain about."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
