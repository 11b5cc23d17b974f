"""Writing to disk: whole or not at all, and what could not be written is refused before any work."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from owl_compress.errors import RequestError

# safetensors has an error type of its own, with the operating system's text and number inside.
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` through a temporary file beside it, so that `path` is never half written."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all.

    Raises:
        RequestError: the disk is full, or the file cannot be written.
    """
    with _disk_errors(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            _permit_(Path(temporary))
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def check_output_folder(path: Path) -> None:
    """Refuse an output folder that could not be written, or holds anything already, before any work is done.

    Raises:
        RequestError: it is a file, is not empty, or lies where no folder can be made.
    """
    if path.exists() and not path.is_dir():
        raise RequestError(f"output folder {path} is a file: name a folder that is new or empty")
    if path.exists() and any(path.iterdir()):
        raise RequestError(f"output folder {path} exists and is not empty: name a new one or remove it")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RequestError(f"cannot make output folder {path}: {parent} is no folder that can be written to")


def check_output_file(path: Path) -> None:
    """Refuse an output file that could not be written, before any work is done.

    Raises:
        RequestError: it is a folder, or its folder is missing or cannot be written to.
    """
    if path.is_dir():
        raise RequestError(f"output file {path} is a folder: name a file in it, such as {path / 'NAME.json'}")
    if not path.parent.is_dir():
        raise RequestError(f"cannot write {path}: make its folder {path.parent} first")
    if not os.access(path.parent, os.W_OK):
        raise RequestError(f"cannot write {path}: its folder {path.parent} cannot be written to")


@contextmanager
def output_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that becomes `path` on success and vanishes on any failure."""
    check_output_folder(path)
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
        try:
            yield temporary
            _permit_(temporary)
            if path.is_dir():
                path.rmdir()
            temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            for folder in missing:  # the deepest first; none is empty after a success
                with suppress(OSError):
                    folder.rmdir()


def _permit_(path: Path) -> None:
    """Give a file, or a folder with all in it, the permissions of a new one; temporary ones are private."""
    mask = os.umask(0)
    os.umask(mask)
    for entry in [path, *path.rglob("*")]:
        entry.chmod((0o777 if entry.is_dir() else 0o666) & ~mask)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
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
