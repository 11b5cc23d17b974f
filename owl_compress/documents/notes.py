"""Notes of a long piece of work: what is made is kept on disk by a name, and is not made again.

Each note is a small JSON file, synced before anything goes on. Steps have notes of their own, in a folder
that goes when the step is done and its outcome is a note itself.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from pydantic import ValidationError

from owl_compress.documents.disk import disk_errors, put_in_place
from owl_compress.documents.document import Frozen
from owl_compress.errors import RequestError

T = TypeVar("T", bound=Frozen)


class KeptError(RequestError):
    """What was kept cannot be gone on with: it is broken, or of something else."""


@runtime_checkable
class Notes(Protocol):
    """Where notes are taken, if anywhere."""

    @property
    def folder(self) -> Path | None:
        """Where files of other kinds may be put that go with the notes; None where nothing is kept."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is a note of that name."""
        ...

    def once(self, name: str, kind: type[T], make: Callable[[], T]) -> T:
        """What was made of that name before; else what `make` makes, which is kept."""
        ...

    def step(self, name: str, kind: type[T], make: Callable[["Notes"], T]) -> T:
        """The same of something that takes long: `make` is handed notes of its own, which go with its end."""
        ...


class NoNotes:
    """Nothing is kept, and everything is made."""

    folder: None = None

    def has(self, name: str) -> bool:  # noqa: ARG002 - the protocol's
        """There is none."""
        return False

    def once(self, name: str, kind: type[T], make: Callable[[], T]) -> T:  # noqa: ARG002 - the protocol's
        """What `make` makes."""
        return make()

    def step(self, name: str, kind: type[T], make: Callable[[Notes], T]) -> T:  # noqa: ARG002
        """What `make` makes."""
        return make(self)


NO_NOTES = NoNotes()


@dataclass(frozen=True)
class NotesIn:
    """Notes in `folder`, which is made with the first of them.

    Attributes:
        folder: where they are.
        again: what to do where they are broken.
    """

    folder: Path
    again: str

    def has(self, name: str) -> bool:
        """Whether there is a note of that name."""
        return self._file(name).exists()

    def once(self, name: str, kind: type[T], make: Callable[[], T]) -> T:
        """What was made of that name before; else what `make` makes, which is kept.

        Raises:
            KeptError: what was kept is broken.
            RequestError: the disk is full.
        """
        path = self._file(name)
        if path.exists():
            try:
                return kind.model_validate_json(path.read_text(encoding="utf-8"))
            except (ValidationError, ValueError) as error:
                raise KeptError(f"{path} is broken: {self.again}") from error
        made = make()
        with disk_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
        with put_in_place(path) as temporary:
            temporary.write_text(made.model_dump_json(), encoding="utf-8")
        return made

    def step(self, name: str, kind: type[T], make: Callable[[Notes], T]) -> T:
        """The same of something that takes long: `make` is handed notes of its own, which go with its end.

        Raises:
            RequestError: see `once`.
        """
        own = NotesIn(self.folder / name, self.again)
        done = self.once(name, kind, lambda: make(own))
        shutil.rmtree(own.folder, ignore_errors=True)
        return done

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"
