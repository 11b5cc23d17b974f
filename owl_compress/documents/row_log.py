"""A file that rows are appended to, one at a time, by several processes at once, each synced as it ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from owl_compress.documents.comparison import Row, is_whole, read_rows
from owl_compress.documents.disk import disk_errors
from owl_compress.interrupts import undisturbed


@dataclass(frozen=True)
class RowLog:
    """The rows at `path`; a last one that is not whole goes when the next row is written."""

    path: Path

    def rows(self) -> tuple[Row, ...]:
        """The rows so far; see `read_rows`.

        Raises:
            RequestError: see there.
        """
        return read_rows(self.path) if self.path.exists() else ()

    @property
    def size(self) -> int:
        """Bytes of whole rows so far: where a `RowReader` of what comes from now on begins."""
        if not self.path.exists():
            return 0
        with disk_errors(self.path):
            handle = os.open(self.path, os.O_RDONLY)
            try:
                return _end_of_rows(handle)
            finally:
                os.close(handle)

    def append(self, row: Row) -> None:
        """Write one row, and see it on the disk before going on: what was said to be done stays done.

        Raises:
            RequestError: the disk is full, or the file cannot be written.
        """
        line = row.line().encode()
        with disk_errors(self.path), undisturbed():
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                with _locked(handle):
                    end = _end_of_rows(handle)
                    os.ftruncate(handle, end)
                    break_ = b"" if end == _end_of_lines(handle, end) else b"\n"
                    os.lseek(handle, end, os.SEEK_SET)
                    try:
                        _write_all(handle, break_ + line)
                        os.fsync(handle)
                    except OSError:
                        with suppress(OSError):
                            os.ftruncate(handle, end)
                        raise
            finally:
                os.close(handle)


@dataclass
class RowReader:
    """Reads what was appended to a log since it was last asked, by whichever process."""

    path: Path
    offset: int = 0

    def fresh(self) -> tuple[Row, ...]:
        """The rows of whole lines that came since then; lines that are none are left to `read_rows`."""
        if not self.path.exists():
            return ()
        with disk_errors(self.path), self.path.open("rb") as file:
            file.seek(self.offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self.offset += len(whole)
        found = []
        for line in whole.decode("ascii", errors="replace").splitlines():
            with suppress(ValueError):
                found.append(Row.parse(line))
        return tuple(found)


@contextmanager
def _locked(handle: int) -> Iterator[None]:
    """Hold the lock on an open file, where the system has locks; it goes with the process that holds it."""
    try:
        import fcntl  # noqa: PLC0415 - absent on Windows
    except ImportError:
        yield
        return
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)


def _end_of_rows(handle: int) -> int:
    """Where the last whole row ends: its line may lack an end, or have got one though it was cut."""
    size = os.lseek(handle, 0, os.SEEK_END)
    end = _end_of_lines(handle, size)
    if end < size and is_whole(_text(handle, end, size)):
        return size
    start = _end_of_lines(handle, end - 1)
    last = _text(handle, start, end)
    return end if not last.strip() or is_whole(last) else start


def _text(handle: int, start: int, end: int) -> str:
    os.lseek(handle, start, os.SEEK_SET)
    return os.read(handle, end - start).decode(errors="replace")


def _end_of_lines(handle: int, end: int) -> int:
    """Behind the last line break of the first `end` bytes."""
    step = 4096
    start = max(0, end)
    while start > 0:
        start, stop = max(0, start - step), start
        os.lseek(handle, start, os.SEEK_SET)
        place = os.read(handle, stop - start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
    return 0


def _write_all(handle: int, content: bytes) -> None:
    while content:
        content = content[os.write(handle, content) :]
