"""Temporary files and folders beside an output: named after their maker, held by it, gone when it is dead."""

import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

_STEM_BYTES = 100
_HAS_LOCKS = find_spec("fcntl") is not None
_SUFFIX = ".partial"


def temporary_name(name: str) -> str:
    """A hidden name for what becomes `name`; it says which process makes it, and is never too long."""
    return f".{_stem(name)}.{_machine()}-{os.getpid()}.{secrets.token_hex(4)}{_SUFFIX}"


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock on a file or folder while the block lasts, where the file system has locks."""
    handle = _locked(path)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold a lock on a folder while the block lasts; yield whether it is ours, or nobody's without locks."""
    handle = _locked(folder)
    try:
        yield handle is not None or not _HAS_LOCKS
    finally:
        if handle is not None:
            os.close(handle)


def remove_dead(folder: Path, name: str) -> None:
    """Remove what processes that are dead left in `folder` on their way to `name`.

    Dead is a process of this machine whose number is not in use and whose lock is free; whatever cannot be
    proven to be left by one stays.
    """
    pattern = re.compile(
        rf"\.{re.escape(_stem(name))}\.{_machine()}-(\d+)\.[0-9a-f]{{8}}{re.escape(_SUFFIX)}"
    )
    with suppress(OSError):
        for entry in list(folder.iterdir()):
            found = pattern.fullmatch(entry.name)
            if found and not _is_alive(int(found[1])):
                _remove_if_free(entry)


def is_temporary(name: str) -> bool:
    """Whether a file or folder is called like one of these."""
    return name.startswith(".") and name.endswith(_SUFFIX)


def _stem(name: str) -> str:
    return name.encode("utf-8", "replace")[:_STEM_BYTES].decode("utf-8", "ignore")


def _machine() -> str:
    return sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _remove_if_free(path: Path) -> None:
    handle = _locked(path)
    if handle is None:
        return
    try:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _locked(path: Path) -> int | None:
    """An open file descriptor that holds the lock on `path`; None if another does, or there are no locks."""
    try:
        import fcntl  # noqa: PLC0415 - absent on Windows
    except ImportError:
        return None
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle
