"""What one of several processes at work on a folder does alone: a byte of one file is locked for it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from owl_compress.documents.disk import disk_errors

_NAME = ".claims"
_DIGITS = 12
"""Of a fingerprint, as the place of its byte: the file itself stays empty."""


@dataclass(frozen=True)
class Claims:
    """Locks on bytes of one open file; the system lets go of them when the process ends, however it does.

    A process has one of these for a folder: closing the file once lets go of every lock in it.
    """

    handle: int

    @classmethod
    @contextmanager
    def within(cls, folder: Path) -> Iterator["Claims"]:
        """The claims of processes at work in `folder`, while the block lasts.

        Raises:
            RequestError: the folder cannot be written to.
        """
        path = folder / _NAME
        with disk_errors(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            yield cls(handle)
        finally:
            os.close(handle)

    @contextmanager
    def claimed(self, fingerprint: str, *, waits: bool = False) -> Iterator[bool]:
        """Whether what has that fingerprint is ours while the block lasts; with `waits`, once it is.

        It is not where another process is at it. On a system without such locks everything is ours.
        """
        try:
            import fcntl  # noqa: PLC0415 - absent on Windows
        except ImportError:
            yield True
            return
        place = int(fingerprint[:_DIGITS], 16)
        try:
            fcntl.lockf(self.handle, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB), 1, place)
        except (BlockingIOError, PermissionError):
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self.handle, fcntl.LOCK_UN, 1, place)
