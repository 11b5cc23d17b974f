"""Files on disk: written whole or not at all, and what could not be written is refused before any work."""

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from owl_compress.documents.outputs import check_is_free
from owl_compress.documents.paths import given_path
from owl_compress.documents.temporary import held, is_temporary, remove_dead, temporary_name
from owl_compress.errors import RequestError
from owl_compress.interrupts import undisturbed

# safetensors has an error type of its own, with the operating system's text and number inside.
_OS_ERROR = re.compile(r"\(os error (\d+)\)")

_FINISHED: list[Path] = []


def finished_outputs() -> tuple[Path, ...]:
    """What this process has put in its place so far: whole, whatever comes afterwards."""
    return tuple(_FINISHED)


def note_finished(path: Path) -> None:
    """Note an output, unless it is a part of one that is being made."""
    if not any(is_temporary(part) for part in path.parts):
        _FINISHED.append(path)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` through a temporary file beside it, so that `path` is never half written."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all; a link stays, and what it points to is written.

    Raises:
        RequestError: the disk is full, or the file cannot be written.
    """
    with disk_errors(path):
        real = resolved(path)
        with _temporary_file(real) as temporary:
            _fill_file_(temporary, content)
            with undisturbed():
                temporary.replace(real)
                note_finished(path)


@contextmanager
def put_in_place(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path` to be filled; it is synced and takes its place when that is done.

    Raises:
        RequestError: the disk is full, or the file cannot be written.
    """
    with disk_errors(path), _temporary_file(path) as temporary:
        yield temporary
        sync(temporary)
        with undisturbed():
            temporary.replace(path)
        sync(path.parent)


def sync(path: Path) -> None:
    """See what a file holds, or what a folder lists, on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_together(texts: Mapping[Path, str]) -> None:
    """Write files that belong together: all of them are whole before the first one gets its name.

    Raises:
        RequestError: the disk is full, or one of them cannot be written.
    """
    with ExitStack() as stack:
        made: list[tuple[Path, Path, Path]] = []
        for path, text in texts.items():
            stack.enter_context(disk_errors(path))
            real = resolved(path)
            temporary = stack.enter_context(_temporary_file(real))
            _fill_file_(temporary, text.encode("utf-8"))
            made.append((path, temporary, real))
        with undisturbed():
            for path, temporary, real in made:
                temporary.replace(real)
                note_finished(path)


def check_output_file(path: Path, *, inputs: Iterable[Path | str] = (), kind: str | None = None) -> None:
    """Refuse an output file that could not be written, before any work is done: a file beside it is tried.

    Args:
        path: the file.
        inputs: what is read meanwhile, and must not be written over; names that are no paths do no harm.
        kind: of documents of ours, such as "plan", or `outputs.PICTURE`. A file that is there
            already is only replaced by one of the same kind; without a kind, whatever it is.

    Raises:
        RequestError: it is a folder or a device, an input, something else than is written, or its folder is
            missing or cannot be written to.
    """
    path = given_path(path)
    with disk_errors(path):
        real = resolved(path)
        if real.is_dir():
            raise RequestError(
                f"output file {path} is a folder: name a file in it, such as {path / 'NAME.json'}"
            )
        if not real.parent.is_dir():
            folder = real.parent if path.is_symlink() else path.parent
            raise RequestError(f"cannot write {path}: make its folder {folder} first")
        check_is_free(path, real, inputs, kind)
        with _temporary_file(real):
            pass


def resolved(path: Path) -> Path:
    """Where a path leads, through all links."""
    try:
        return path.resolve()
    except RuntimeError as error:  # what older Pythons make of it
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error


def _fill_file_(temporary: Path, content: bytes) -> None:
    """Write what a file is to hold, with the permissions of a new one."""
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_TRUNC), "wb") as file:
        file.write(content)
    permit_(temporary)


@contextmanager
def _temporary_file(real: Path) -> Iterator[Path]:
    """An empty file beside `real`, without those of the dead; it goes in the end, unless it became `real`."""
    remove_dead(real.parent, real.name)
    temporary = real.with_name(temporary_name(real.name))
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with held(temporary):
            yield temporary
    finally:
        with undisturbed():
            temporary.unlink(missing_ok=True)


def permit_(path: Path) -> None:
    """Give a file, or a folder with all in it, the permissions of a new one; temporary ones are private."""
    mask = os.umask(0)
    os.umask(mask)
    for entry in [path, *path.rglob("*")]:
        entry.chmod((0o777 if entry.is_dir() else 0o666) & ~mask)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with the disk inside the block into one line that names `path`."""
    try:
        yield
    except OSError as error:
        raise _told(error.errno, error.strerror or str(error), path) from error
    except Exception as error:
        # safetensors has an error type of its own, with the operating system's text and number inside.
        number = _OS_ERROR.search(str(error))
        if number is None and "No space left" not in str(error):
            raise
        code = int(number[1]) if number else errno.ENOSPC
        raise _told(code, os.strerror(code), path) from error


def _told(code: int | None, reason: str, path: Path) -> RequestError:
    if code in {errno.ENOSPC, errno.EDQUOT}:
        return RequestError(f"disk full while writing {path}: free some space and run again")
    return RequestError(f"cannot write {path}: {reason}")
