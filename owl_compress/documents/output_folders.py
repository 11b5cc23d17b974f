"""Output folders: what could not be written is refused before any work, and none is ever half there."""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from owl_compress.documents.disk import disk_errors, note_finished, permit_, resolved
from owl_compress.documents.outputs import check_is_outside, check_may_replace, is_empty
from owl_compress.documents.paths import given_path
from owl_compress.documents.temporary import held, remove_dead, temporary_name
from owl_compress.errors import RequestError
from owl_compress.interrupts import undisturbed


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
            permit_(temporary)
            with undisturbed():
                _put_in_place_(place, temporary)
                note_finished(path)


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
    path = resolved(named)
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
