"""What one of several processes at work on a folder does alone: a byte of one file is locked for it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from owl_compress.documents.disk import disk_errors
from owl_compress.errors import RequestError

_NAME = ".claims"
_DIGITS = 12
"""Of a fingerprint, as the place of its byte: the file itself stays empty."""
_GRIDS = 16**_DIGITS
"""Where the bytes of grids begin, behind those of fingerprints."""


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

    def join(self, grid: str, out: Path) -> None:
        """Be at work on a grid, of which `grid` is the text, for as long as these claims are held.

        Others may be, too, and on no other grid: each would give the rows of both its own names.

        Raises:
            RequestError: a process is at work on another one in `out`.
        """
        try:
            import fcntl  # noqa: PLC0415 - absent on Windows
        except ImportError:
            return
        own = _GRIDS + int(sha256(grid.encode()).hexdigest()[:_DIGITS], 16)
        others = ((_GRIDS, own - _GRIDS), (own + 1, 2 * _GRIDS - own - 1))
        for first, length in others:
            if length:
                try:
                    fcntl.lockf(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB, length, first)
                except (BlockingIOError, PermissionError) as error:
                    raise RequestError(
                        f"another comparison is at work in results folder {out}: wait until it is done, or "
                        "name another folder"
                    ) from error
                fcntl.lockf(self.handle, fcntl.LOCK_UN, length, first)
        fcntl.lockf(self.handle, fcntl.LOCK_SH, 1, own)

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
