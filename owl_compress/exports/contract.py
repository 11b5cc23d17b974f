"""What a tool's file of budgets is: written from a plan, and read back into budgets by linear."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from owl_compress.documents.plan import Plan
from owl_compress.documents.units import Unit


@dataclass(frozen=True)
class Exported:
    """A file in the words of another tool, and what that tool will do otherwise than the plan says."""

    text: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Foreign:
    """The budgets that a file of another tool holds.

    Attributes:
        unit: what they count.
        values: by the name of the linear, as plans have them: a larger one keeps more.
        skipped: linears that the file says are left alone.
        kept_of: M, where densities are N of M.
    """

    unit: Unit
    values: Mapping[str, float]
    skipped: tuple[str, ...] = field(default=())
    kept_of: int | None = None


class Importer(Protocol):
    """A tool whose files can be read. Its options are the fields of its frozen dataclass."""

    name: ClassVar[str]

    def read(self, text: str, sizes: Mapping[str, int]) -> Foreign:
        """The budgets in `text`; `sizes` has the weights of every linear that a pattern may mean.

        Linears are in the order of the model. What the file names and `sizes` lacks is in the answer all the
        same: whoever asks has to refuse it.

        Raises:
            RequestError: it is no such file, or says something that no plan can.
        """
        ...


class Exporter(Importer, Protocol):
    """A tool that a plan can be written for; what was written can be read back."""

    units: ClassVar[tuple[Unit, ...]]

    def write(self, plan: Plan) -> Exported:
        """The plan in the words of the tool. Its unit is one of `units`.

        Raises:
            RequestError: a value that the tool refuses, named, with the nearest that it takes.
        """
        ...
