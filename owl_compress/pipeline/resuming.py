"""A run that goes on where another was cut off: what an unfinished one keeps, and whether it is the same one.

Beside the output lies a folder `OUT.unfinished` until the output is whole. It holds what the run depends on,
what was measured, the plan, and every block that is done. One process at a time holds it.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from pydantic import ValidationError

from owl_compress.checkpoints.loading import locate
from owl_compress.compression.journal import Journal
from owl_compress.documents.disk import disk_errors, put_in_place
from owl_compress.documents.document import Frozen
from owl_compress.documents.journal import JournalHead
from owl_compress.documents.plan import Plan
from owl_compress.documents.temporary import is_temporary, locked
from owl_compress.documents.units import Unit
from owl_compress.documents.versions import versions
from owl_compress.errors import RequestError
from owl_compress.models.residence import is_streamed
from owl_compress.pipeline.request import Request
from owl_compress.pipeline.session import Session

T = TypeVar("T", bound=Frozen)

_HEAD, _PLAN, _BLOCKS = "head.json", "plan.json", "blocks"
_SEEN_ELSEWHERE = (
    "model", "calib", "data", "damage-data", "plan", "profile", "cost-table", "offload", "activations",
)  # fmt: skip
"""Options that name files, which are looked at themselves, or that change nothing of what comes out."""
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "config.json")


@runtime_checkable
class Kept(Protocol):
    """What is kept of a run until it is done."""

    @property
    def journal(self) -> Journal | None:
        """The blocks that are done; None where none is kept."""
        ...

    def once(self, name: str, kind: type[T], make: Callable[[], T]) -> T:
        """What was made of that name before; else what `make` makes, which is kept."""
        ...

    def settle_plan(self, plan: Plan) -> None:
        """Take note of the plan that is carried out; another than before is refused."""
        ...


class NothingKept:
    """A run that has to be done in one go."""

    journal: None = None

    def once(self, name: str, kind: type[T], make: Callable[[], T]) -> T:  # noqa: ARG002 - the protocol's
        """What `make` makes."""
        return make()

    def settle_plan(self, plan: Plan) -> None:
        """Any plan will do."""


NOTHING_KEPT = NothingKept()


@dataclass(frozen=True)
class Unfinished:
    """What is kept in `folder`."""

    folder: Path

    @property
    def journal(self) -> Journal:
        """The blocks that are done."""
        (self.folder / _BLOCKS).mkdir(exist_ok=True)
        return Journal(self.folder / _BLOCKS)

    def once(self, name: str, kind: type[T], make: Callable[[], T]) -> T:
        """What was made of that name before; else what `make` makes, which is kept.

        Raises:
            RequestError: what was kept is broken, or the disk is full.
        """
        path = self.folder / f"{name}.json"
        if path.exists():
            try:
                return kind.model_validate_json(path.read_text(encoding="utf-8"))
            except (ValidationError, ValueError) as error:
                raise RequestError(f"{path} is broken: start over with --overwrite") from error
        made = make()
        _write(path, made.model_dump_json())
        return made

    def settle_plan(self, plan: Plan) -> None:
        """Take note of the plan that is carried out.

        Raises:
            RequestError: blocks were compressed by another plan before.
        """
        path = self.folder / _PLAN
        if not path.exists():
            _write(path, plan.to_json())
            return
        then = Plan.read(path)
        if then.fingerprint != plan.fingerprint:
            JournalHead(depends_on={"the plan": then.fingerprint[:16]}).check_same(
                {"the plan": plan.fingerprint[:16]}, str(self.folder)
            )


def folder_beside(out: Path) -> Path:
    """Where the unfinished run of an output is kept."""
    real = out.resolve()
    return real.with_name(f"{real.name}.unfinished")


def check_unfinished(request: Request, out: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse an output of which a part is there, unless that is gone on with or started over.

    Raises:
        RequestError: see above; or a method of which no part can be kept.
    """
    folder = folder_beside(out)
    if resume and overwrite:
        raise RequestError("--resume goes on and --overwrite starts over: give one of them")
    if resume and request.unit is Unit.WIDTH:
        raise RequestError(
            f"--resume: backend {request.backend.name!r} removes heads and channels, which is not kept block "
            "by block: drop it"
        )
    if resume and not hasattr(request.backend, "compress_block_"):
        raise RequestError(
            f"--resume: backend {request.backend.name!r} writes its own checkpoint in one go: drop it"
        )
    if not folder.exists():
        return
    with _held(folder, out):
        if overwrite:
            shutil.rmtree(folder)
        elif not resume:
            raise RequestError(
                f"an unfinished run lies in {folder}: go on with --resume, or start over with --overwrite"
            )


@contextmanager
def kept_until_done(session: Session, out: Path | None, *, resume: bool) -> Iterator[Kept]:
    """What is kept of a run until the end of the block; of one that goes on, what there is.

    It is nothing without an output, or for a model in memory that nobody asked to resume.

    Raises:
        RequestError: another process makes the same output, or what is there is of another run. What ends the
            block early is told together with what is kept.
    """
    is_kept = resume or is_streamed(session.loaded.model)
    if out is None or session.writes_by_itself or session.request.unit is Unit.WIDTH or not is_kept:
        yield NOTHING_KEPT
        return
    folder = folder_beside(out)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _held(folder, out):
            unfinished = _opened(folder, depends_on(session))
            with _told_what_is_kept(unfinished, len(session.structure.blocks)):
                yield unfinished
            shutil.rmtree(folder)


def _opened(folder: Path, now: Mapping[str, str]) -> Unfinished:
    """The unfinished run in `folder`, begun there if there is none."""
    for entry in [*folder.glob("*"), *folder.glob(f"{_BLOCKS}/*")]:
        if is_temporary(entry.name):  # of a process that is gone: nobody else holds the folder
            entry.unlink()
    head = folder / _HEAD
    if head.exists():
        JournalHead.read(head).check_same(now, str(folder))
    else:
        _write(head, JournalHead(depends_on=dict(now)).to_json())
    return Unfinished(folder)


@contextmanager
def _told_what_is_kept(unfinished: Unfinished, n_blocks: int) -> Iterator[None]:
    try:
        yield
    except (RequestError, KeyboardInterrupt) as error:
        n_finished = unfinished.journal.n_finished
        names = {entry.name for entry in unfinished.folder.iterdir()}
        if not n_finished and names <= {_HEAD, _BLOCKS}:
            shutil.rmtree(unfinished.folder, ignore_errors=True)
            raise
        kept = (
            f"{n_finished} of {n_blocks} blocks are done and kept in {unfinished.folder}; --resume goes on "
            "with them"
        )
        if isinstance(error, RequestError):
            raise RequestError(f"{error} ({kept})") from error
        raise KeyboardInterrupt(f"interrupted: {kept}") from error


@contextmanager
def _held(folder: Path, out: Path) -> Iterator[None]:
    """Hold the folder, so that no other process works on the same output.

    Raises:
        RequestError: another does.
    """
    with locked(folder) as is_ours:
        if not is_ours:
            raise RequestError(f"another process is making {out}: wait for it, or name another folder")
        yield


def depends_on(session: Session) -> dict[str, str]:
    """What the outcome of a session depends on, in the words of whoever asked for it, but for the plan."""
    found = {f"version of {name}": version for name, version in versions().items()}
    found |= _model_files(session)
    settings = session.recipe.settings
    found |= {f"--{name}": str(value) for name, value in settings.items() if name not in _SEEN_ELSEWHERE}
    found["data type of the model"] = session.loaded.dtype
    found["kind of device"] = session.request.device.type
    for what, windows in (("calibration", session.calibration), ("evaluation", session.held_out)):
        if windows is not None:
            found[f"text of the {what} (token ids)"] = windows.record.token_ids_sha256[:16]
    return found


def _model_files(session: Session) -> dict[str, str]:
    """Size and time of change of the files that the model comes from."""
    source = locate(session.loaded.source, allow_pickle=True)
    if source.gguf:
        files = [Path(source.where) / source.gguf]
    else:
        options = {**source.options, "revision": session.loaded.revision}
        folder = type(source)(source.named, source.where, is_local=source.is_local, options=options).snapshot
        files = sorted({file for pattern in _WEIGHTS for file in (folder.glob(pattern) if folder else ())})
    if not files:
        raise RequestError(f"--resume: the files of model {session.loaded.source!r} are not found: drop it")
    return {f"file {file.name} of the model": _as_it_is(file) for file in files}


def _as_it_is(file: Path) -> str:
    status = file.stat()
    changed = datetime.fromtimestamp(status.st_mtime_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{status.st_size:,} bytes of {changed}.{status.st_mtime_ns % 10**9:09d}"


def _write(path: Path, text: str) -> None:
    with put_in_place(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
