"""What is kept of an output until it is whole: a folder `OUT.unfinished` beside it, whatever the output is.

It holds what the outcome depends on and notes of all that is done. One process at a time holds it, and it
goes when the output is in its place. Whoever is not told to go on with one that is there refuses to begin.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from owl_compress.documents.disk import disk_errors, put_in_place
from owl_compress.documents.journal import JournalHead
from owl_compress.documents.notes import NO_NOTES, KeptError, Notes, NotesIn
from owl_compress.documents.temporary import is_temporary, locked, remove_dead, temporary_name
from owl_compress.errors import RequestError
from owl_compress.interrupts import is_interrupt
from owl_compress.walk.ranks import Ranks

HEAD, STATE = "head.json", "state.safetensors"
_OF_WHAT = frozenset({HEAD, "backend", "backend.json"})
"""Files that say what is made, and hold nothing of it."""

BOTH = "--resume goes on and --overwrite starts over: give one of them"
_LONGEST = 80
_ALONE = Ranks()


def folder_beside(out: Path) -> Path:
    """Where the unfinished part of an output is kept."""
    real = out.resolve()
    return real.with_name(f"{real.name}.unfinished")


def start_over(folder: Path) -> None:
    """Remove what is kept of an output that is made anew, where it is ours.

    Raises:
        RequestError: it is not: nothing says what it is of.
    """
    if not _is_ours(folder):
        raise RequestError(
            f"{folder} was not written by owl-compress, and is where the unfinished part of the output would "
            "be kept: move it elsewhere, or name another output"
        )
    discard(folder)


def _is_ours(folder: Path) -> bool:
    says = (folder / HEAD).is_file() or (folder / STATE).is_file()
    return folder.is_dir() and (says or holds_nothing(folder))


def discard(folder: Path) -> None:
    """Remove what is kept, all of it at once: a part of it is never taken for the whole."""
    gone = folder.with_name(temporary_name(folder.name))
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def held(out: Path) -> Iterator[Path]:
    """Hold the folder of an output, which is there, so that no other process works on the same one.

    Raises:
        RequestError: another does.
    """
    folder = folder_beside(out)
    with locked(folder) as is_ours:
        if not is_ours:
            raise RequestError(f"another process is making {out}: wait for it, or name another output")
        yield folder


def opened(folder: Path, depends_on: Mapping[str, str], again: str) -> NotesIn:
    """The notes of what depends on just this; begun if there are none. `again` is how to start over.

    Raises:
        KeptError: what is there depends on something else, which is named, or does not say on what.
        RequestError: the disk is full, or cannot be written to.
    """
    clean(folder)
    head = folder / HEAD
    if not head.exists() and not holds_nothing(folder):
        raise KeptError(f"{folder} lacks {HEAD}, which says what it is of: remove it, or name another output")
    if head.exists():
        _head(head, again).check_same(depends_on, str(folder), again)
    else:
        with put_in_place(head) as temporary:
            temporary.write_text(JournalHead(depends_on=dict(depends_on)).to_json(), encoding="utf-8")
    return NotesIn(folder, again)


def _head(path: Path, again: str) -> JournalHead:
    try:
        return JournalHead.read(path)
    except RequestError as error:
        raise KeptError(f"{error}; {again}") from error


def clean(folder: Path) -> None:
    """Remove files that were being written when a process died: nobody else holds the folder."""
    for entry in list(folder.rglob("*")):
        if is_temporary(entry.name):
            entry.unlink(missing_ok=True)


def holds_nothing(folder: Path) -> bool:
    """Whether nothing is kept there but what it is of, and what a process was writing when it died."""
    return all(
        entry.is_dir() or entry.name in _OF_WHAT or is_temporary(entry.name) for entry in folder.rglob("*")
    )


def forget(out: Path) -> None:
    """Remove what is kept of an output that is in its place, unless another process is at work on it."""
    folder = folder_beside(out)
    remove_dead(folder.parent, folder.name)
    if _is_ours(folder):
        with held(out):
            discard(folder)


@dataclass(frozen=True)
class Keeping:
    """How a file that takes long to make is kept meanwhile.

    Attributes:
        out: the file.
        folder: that this process holds for it; None where nothing is kept.
        is_finished: whether the file is there and nothing unfinished: then it is looked at and not made.
    """

    out: Path
    folder: Path | None = None
    is_finished: bool = False

    def notes(self, depends_on: Callable[[], Mapping[str, str]]) -> Notes:
        """Notes of what depends on just this.

        Raises:
            RequestError: see `opened`.
        """
        if self.folder is None:
            return NO_NOTES
        return opened(self.folder, depends_on(), _start_over(self.folder))

    def loading(self, model: str) -> str:
        """What is said before the `model` is loaded, and anything further kept."""
        told = f"loading {model}"
        if self.folder is None or holds_nothing(self.folder):
            return told
        return f"{told}, to go on with what is kept in {self.folder}"

    @property
    def outcome(self) -> str:
        """What became of the file, for whoever asked for it."""
        return f"{self.out} is finished already" if self.is_finished else f"wrote {self.out}"


def check_alone(ranks: Ranks, *, resume: bool) -> None:
    """Refuse to resume with several processes.

    Raises:
        RequestError: there are.
    """
    if resume and ranks.of > 1:
        raise RequestError("--resume is for one process: start it without torchrun, or run without --resume")


@contextmanager
def kept_until_written(
    out: Path, *, resume: bool, is_input: bool = False, ranks: Ranks = _ALONE
) -> Iterator[Keeping]:
    """Keep what is made of the file `out` until the end of the block, where it has to be in its place.

    Without `resume` nothing is kept. Where the file `is_input`, too, it is not finished by being there.

    Raises:
        RequestError: something unfinished is there and not to be gone on with, another process makes the
            same file, or there are several. What ends the block early is told together with what is kept.
    """
    check_alone(ranks, resume=resume)
    if not ranks.leads:
        yield Keeping(out)
        return
    folder = folder_beside(out)
    remove_dead(folder.parent, folder.name)
    if not resume:
        if folder.exists():
            with held(out):
                raise RequestError(
                    f"what was begun of {out} lies in {folder}: go on with --resume, or {_start_over(folder)}"
                )
        yield Keeping(out)
        return
    if not is_input and not folder.exists() and out.exists() and out.stat().st_size:
        yield Keeping(out, is_finished=True)
        return
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        told = f"what was measured so far is kept in {folder}; --resume goes on with it"
        with held(out), told_what_is_kept(folder, lambda: told):
            yield Keeping(out, folder)
            discard(folder)


@contextmanager
def told_what_is_kept(folder: Path, kept: Callable[[], str]) -> Iterator[None]:
    """Say what is `kept` beside what ends the block early; a folder that holds nothing goes."""
    try:
        yield
    except KeptError:
        raise
    except BaseException as error:
        if holds_nothing(folder):
            with suppress(OSError):
                shutil.rmtree(folder)
            raise
        if isinstance(error, RequestError):
            raise RequestError(f"{error} ({kept()})") from error
        if is_interrupt(error):
            raise KeyboardInterrupt(f"interrupted: {kept()}") from error
        raise


def _start_over(folder: Path) -> str:
    return f"remove {folder.name} to start over"


def check_finished(out: Path, pairs: Mapping[str, tuple[object, object]]) -> None:
    """Refuse to take the file `out` for what is asked for; `pairs` are what it says and what is asked.

    Raises:
        RequestError: naming the first that differs.
    """
    for name, (there, asked) in pairs.items():
        if there != asked:
            raise RequestError(
                f"{out} is finished, and {name} differs: {_brief(there)} there, {_brief(asked)} now; name "
                "another file, or drop --resume to write this one anew"
            )


def _brief(value: object) -> str:
    """A value in a few words: of several fields what tells one from another."""
    told = getattr(value, "token_ids_sha256", None) or getattr(value, "id", None) or value
    return str(told)[:_LONGEST]


NOTHING_KEPT = Keeping(Path())
