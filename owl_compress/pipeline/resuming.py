"""A run that goes on where another was cut off: what an unfinished one keeps, and whether it is the same one.

Beside notes of what was measured, its folder (see `unfinished`) holds the plan and every block that is done.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol, runtime_checkable

from owl_compress.compression.journal import Journal
from owl_compress.documents.disk import disk_errors, put_in_place
from owl_compress.documents.journal import JournalHead
from owl_compress.documents.notes import NO_NOTES, Notes
from owl_compress.documents.plan import Plan
from owl_compress.documents.temporary import remove_dead
from owl_compress.errors import RequestError
from owl_compress.models.residence import is_streamed
from owl_compress.pipeline.facts import facts
from owl_compress.pipeline.request import Request
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.unfinished import (
    BOTH,
    discard,
    folder_beside,
    held,
    holds_nothing,
    opened,
    start_over,
    told_what_is_kept,
)

_PLAN, _BLOCKS = "plan.json", "blocks"
_AGAIN = "start over with --overwrite"


@runtime_checkable
class Kept(Protocol):
    """What is kept of a run until it is done."""

    @property
    def journal(self) -> Journal | None:
        """The blocks that are done; None where none is kept."""
        ...

    @property
    def notes(self) -> Notes:
        """What was measured."""
        ...

    def settle_plan(self, plan: Plan) -> None:
        """Take note of the plan that is carried out; another than before is refused."""
        ...


class NothingKept:
    """A run that has to be done in one go."""

    journal: None = None
    notes: Notes = NO_NOTES

    def settle_plan(self, plan: Plan) -> None:
        """Any plan will do."""


NOTHING_KEPT = NothingKept()


@dataclass(frozen=True)
class UnfinishedRun:
    """What is kept in `folder`."""

    folder: Path
    notes: Notes

    @property
    def journal(self) -> Journal:
        """The blocks that are done."""
        (self.folder / _BLOCKS).mkdir(exist_ok=True)
        return Journal(self.folder / _BLOCKS)

    def settle_plan(self, plan: Plan) -> None:
        """Take note of the plan that is carried out.

        Raises:
            RequestError: blocks were compressed by another plan before.
        """
        path = self.folder / _PLAN
        if not path.exists():
            with put_in_place(path) as temporary:
                temporary.write_text(plan.to_json(), encoding="utf-8")
            return
        then = Plan.read(path)
        if then.fingerprint != plan.fingerprint:
            JournalHead(depends_on={"the plan": then.fingerprint[:16]}).check_same(
                {"the plan": plan.fingerprint[:16]}, str(self.folder), _AGAIN
            )


def check_unfinished(request: Request, out: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse an output of which a part is there, unless that is gone on with or started over.

    Raises:
        RequestError: see above; or a method of which no part can be kept.
    """
    folder = folder_beside(out)
    remove_dead(folder.parent, folder.name)
    if resume and overwrite:
        raise RequestError(BOTH)
    if resume and not hasattr(request.backend, "compress_block_"):
        raise RequestError(
            f"--resume: backend {request.backend.name!r} writes its own checkpoint in one go: drop it"
        )
    if not folder.exists():
        return
    with held(out):
        if overwrite:
            start_over(folder)
        elif not resume:
            raise RequestError(f"an unfinished run lies in {folder}: go on with --resume, or {_AGAIN}")


@contextmanager
def kept_until_done(session: Session, out: Path | None, *, resume: bool) -> Iterator[Kept]:
    """What is kept of a run until the end of the block; of one that goes on, what there is.

    It is nothing without an output, or for a model in memory that nobody asked to resume.

    Raises:
        RequestError: another process makes the same output, or what is there is of another run. What ends the
            block early is told together with what is kept.
    """
    is_kept = resume or is_streamed(session.loaded.model)
    if out is None or session.writes_by_itself or not is_kept:
        yield NOTHING_KEPT
        return
    folder, found = folder_beside(out), depends_on(session)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with held(out):
            with told_what_is_kept(folder, lambda: _kept_in_words(folder, session)):
                notes = opened(folder, found, _AGAIN)
                if not holds_nothing(folder):
                    session.announce(_going_on_in_words(folder, session))
                yield UnfinishedRun(folder, notes)
            discard(folder)


def _kept_in_words(folder: Path, session: Session) -> str:
    if n_finished := Journal(folder / _BLOCKS).n_finished:
        return f"{_done_in_words(n_finished, session)} and kept in {folder}; --resume goes on with them"
    return f"what was measured so far is kept in {folder}; --resume goes on with it"


def _going_on_in_words(folder: Path, session: Session) -> str:
    n_finished = Journal(folder / _BLOCKS).n_finished
    done = _done_in_words(n_finished, session) if n_finished else "some of the measuring is done"
    return f"going on with {folder}, where {done}; a time that is told now is that of a whole run"


def _done_in_words(n_finished: int, session: Session) -> str:
    return f"{n_finished} of {len(session.structure.blocks)} blocks are done"


def depends_on(session: Session) -> dict[str, str]:
    """What the outcome of a session depends on, in the words of whoever asked for it, but for the plan."""
    texts = {"calibration": session.calibration, "evaluation": session.held_out}
    found = facts(session.loaded, session.recipe.settings, session.request.device, texts)
    found["statistics"] = session.request.statistics
    if session.request.measures_damage:
        written = session.text_of_damage.written_for(session.loaded.tokenizer)
        found["text of the damage"] = sha256(written.joined.encode()).hexdigest()[:16]
    return found
