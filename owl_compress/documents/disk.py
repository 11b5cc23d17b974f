"""Writing to disk: whole or not at all, and what could not be written is refused before any work."""

import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from owl_compress.documents.outputs import check_is_free, check_is_outside, check_may_replace, is_empty
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


def _note_finished(path: Path) -> None:
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
        real = _resolved(path)
        with _temporary_file(real) as temporary:
            _fill_file_(temporary, content)
            with undisturbed():
                temporary.replace(real)
                _note_finished(path)


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
            real = _resolved(path)
            temporary = stack.enter_context(_temporary_file(real))
            _fill_file_(temporary, text.encode("utf-8"))
            made.append((path, temporary, real))
        with undisturbed():
            for path, temporary, real in made:
                temporary.replace(real)
                _note_finished(path)


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
        real = _resolved(path)
        if real.is_dir():
            raise RequestError(
                f"output file {path} is a folder: name a file in it, such as {path / 'NAME.json'}"
            )
        if not real.parent.is_dir():
            raise RequestError(f"cannot write {path}: make its folder {path.parent} first")
        check_is_free(path, real, inputs, kind)
        with _temporary_file(real):
            pass


def check_output_folder(
    path: Path, *, overwrite: bool = False, inputs: Iterable[Path | str] = (), n_bytes: int = 0
) -> None:
    """Refuse an output folder that could not be written, before any work is done: a temporary one is tried.

    Args:
        path: the folder.
        overwrite: whether an output of ours that is there may be replaced.
        inputs: folders that are read meanwhile, and must not be replaced or added to; names that are no paths
            do no harm.
        n_bytes: what will be written at least, as far as that is known.

    Raises:
        RequestError: it is a file, holds what may not be replaced, lies in an input or where no folder can be
            made, or the disk has too little room.
    """
    path = given_path(path)
    with disk_errors(path):
        place = _place_of(path, inputs, overwrite=overwrite)
        with _workplace(place) as temporary:
            free = shutil.disk_usage(temporary).free
    if n_bytes > free:
        raise RequestError(
            f"output folder {path} will take {n_bytes:,} bytes at least, and the disk has {free:,} left: "
            "free some space, or name a folder on another disk"
        )


@contextmanager
def output_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` on success and vanishes on any failure.

    It lies beside `path`. An empty folder that cannot be replaced (the working folder, the place where a
    volume is mounted) is filled in the end, and a link to a folder stays one. With `overwrite` an output of
    ours is replaced when the new one is whole.
    """
    path = given_path(path)
    with disk_errors(path):
        place = _place_of(path, (), overwrite=overwrite)
        with _workplace(place) as temporary:
            yield temporary
            _permit_(temporary)
            with undisturbed():
                _put_in_place_(place, temporary)
                _note_finished(path)


@dataclass(frozen=True)
class _Place:
    """An output folder: as it was named, where it really lies, and the folder in which it is made.

    `fills` says that it is made in `path` itself, which is there and stays; `replaces` that an output of ours
    is there, which makes room.
    """

    named: Path
    path: Path
    workshop: Path
    fills: bool = False
    replaces: bool = False


def _place_of(named: Path, inputs: Iterable[Path | str], *, overwrite: bool) -> _Place:
    """Where an output folder is made.

    Raises:
        RequestError: it is a file, lies in a folder that is read, or holds what may not be replaced.
    """
    path = _resolved(named)
    check_is_outside(named, path, inputs)
    if path.exists() and not path.is_dir():
        raise RequestError(f"output folder {named} is a file: name a folder that is new or empty")
    parent = next(folder for folder in (path.parent, *path.parents) if folder.exists())  # "/" is its own
    if not parent.is_dir():
        raise RequestError(f"cannot make output folder {named}: {parent} is no folder")
    for folder in (path, path.parent):
        remove_dead(folder, path.name)
    if not path.is_dir():
        return _Place(named, path, path.parent)
    stays, replaces = _stays(path), not is_empty(path)
    if replaces:
        check_may_replace(named, path, inputs, overwrite=overwrite)
        if stays:
            raise RequestError(
                f"output folder {named} cannot be replaced as a whole, being the working folder or a place "
                "where a disk is mounted: name a new folder in it"
            )
    return _Place(named, path, path if stays else path.parent, stays, replaces)


def _resolved(path: Path) -> Path:
    """Where a path leads, through all links."""
    try:
        return path.resolve()
    except RuntimeError as error:  # what older Pythons make of it
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error


def _stays(path: Path) -> bool:
    """Whether a folder cannot, or should not, make room for another of the same name."""
    if Path.cwd().is_relative_to(path) or os.path.ismount(path):
        return True
    if not os.access(path.parent, os.W_OK):
        return True
    mounts = Path("/proc/self/mountinfo")  # tells of a folder that is mounted from the same disk, too
    with suppress(OSError, IndexError):
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        return str(path).replace(" ", "\\040") in {line.split(" ")[4] for line in lines}
    return False


@contextmanager
def _workplace(place: _Place) -> Iterator[Path]:
    """A temporary folder for an output, and the folders above it that are missing; all go in the end."""
    missing = [folder for folder in (place.workshop, *place.workshop.parents) if not folder.exists()]
    temporary = place.workshop / temporary_name(place.path.name)
    try:
        place.workshop.mkdir(parents=True, exist_ok=True)
        temporary.mkdir(mode=0o700)
        with held(temporary):
            yield temporary
    finally:
        with undisturbed():
            shutil.rmtree(temporary, ignore_errors=True)
            for folder in missing:  # the deepest first; none is empty after a success
                with suppress(OSError):
                    folder.rmdir()


def _fill_file_(temporary: Path, content: bytes) -> None:
    """Write what a file is to hold, with the permissions of a new one."""
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_TRUNC), "wb") as file:
        file.write(content)
    _permit_(temporary)


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


def _put_in_place_(place: _Place, temporary: Path) -> None:
    """Let what is whole now become the output.

    Raises:
        RequestError: the place was taken meanwhile; what was made is kept, and the message says where.
    """
    try:
        if place.fills:
            _fill_(place.path, temporary)
        elif place.replaces:
            _exchange_(place.path, temporary)
        else:
            if place.path.is_dir():
                place.path.rmdir()
            temporary.replace(place.path)
    except OSError as error:
        kept = _kept_beside(place, temporary)
        raise RequestError(
            f"{place.named} cannot be put in its place ({error.strerror}): what was made lies whole in {kept}"
        ) from error


def _fill_(path: Path, temporary: Path) -> None:
    """Move everything into the folder that holds `temporary`; or nothing, if one thing cannot be moved."""
    moved: list[tuple[Path, Path]] = []
    try:
        for entry in sorted(temporary.iterdir()):
            if (path / entry.name).exists():
                raise FileExistsError(errno.EEXIST, f"{entry.name} is there", str(path))
            entry.replace(path / entry.name)
            moved.append((entry, path / entry.name))
    except OSError:
        for entry, there in moved:
            there.replace(entry)
        raise


def _exchange_(path: Path, temporary: Path) -> None:
    """Replace an output that is there; it stays until the new one has its name."""
    old = path.with_name(temporary_name(path.name))
    path.replace(old)
    try:
        temporary.replace(path)
    except OSError:
        old.replace(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _kept_beside(place: _Place, temporary: Path) -> Path:
    """The first name after that of the output which is free, and now that of what was made."""
    number = 2
    while (beside := place.workshop / f"{place.path.name[:200]}-{number}").exists():
        number += 1
    temporary.replace(beside)
    return beside


def _permit_(path: Path) -> None:
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
