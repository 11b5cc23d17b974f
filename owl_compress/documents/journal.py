"""What an unfinished compression says of itself on disk: of what it is, and which blocks are done."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from owl_compress.documents.document import Document, Frozen
from owl_compress.documents.result import Fallback
from owl_compress.documents.units import Name, PositiveCount
from owl_compress.errors import RequestError


class FinishedLinear(Frozen):
    """What was done to one linear; `bits` and `group_size` of its codes, where it has any."""

    name: Name
    achieved: float
    relative_error: float
    seconds: float
    fallbacks: tuple[Fallback, ...] = ()
    bits: PositiveCount | None = None
    group_size: PositiveCount | None = None


class FinishedBlock(Document):
    """One block whose compressed weights lie beside this file."""

    SCHEMA: ClassVar[str] = "owl-compress/finished-block/1"

    schema_: Literal["owl-compress/finished-block/1"] = Field(
        default="owl-compress/finished-block/1", alias="schema"
    )
    block: Name
    linears: tuple[FinishedLinear, ...]


class JournalHead(Document):
    """What a compression depends on, by the words that a user knows it by; see `check_same`."""

    SCHEMA: ClassVar[str] = "owl-compress/journal/1"

    schema_: Literal["owl-compress/journal/1"] = Field(default="owl-compress/journal/1", alias="schema")
    depends_on: dict[str, str]

    def check_same(self, now: Mapping[str, str], where: str) -> None:
        """Refuse to go on where anything is different `now`.

        Raises:
            RequestError: naming the first thing that differs, what it was and what it is.
        """
        for name in sorted(self.depends_on.keys() | now.keys(), key=lambda one: (one not in now, one)):
            then, here = self.depends_on.get(name, "absent"), now.get(name, "absent")
            if then != here:
                raise RequestError(
                    f"--resume: {name} differs: {then} in the unfinished run in {where}, {here} now; give "
                    "what was given then, or start over with --overwrite"
                )
