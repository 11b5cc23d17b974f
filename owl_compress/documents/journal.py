"""What unfinished work says of itself on disk: of what it is, and what is done."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, JsonValue

from owl_compress.documents.document import Document, Frozen, is_none
from owl_compress.documents.notes import KeptError
from owl_compress.documents.plan import Plan
from owl_compress.documents.report import BlockReport, ImportanceReport
from owl_compress.documents.result import Fallback, MethodRecord
from owl_compress.documents.units import Count, Name, PositiveCount


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
    """One block whose compressed weights lie beside this file; `widths` if it lost heads or channels."""

    SCHEMA: ClassVar[str] = "owl-compress/finished-block/1"

    schema_: Literal["owl-compress/finished-block/1"] = Field(
        default="owl-compress/finished-block/1", alias="schema"
    )
    block: Name
    linears: tuple[FinishedLinear, ...]
    widths: dict[str, JsonValue] | None = Field(default=None, exclude_if=is_none)


class JournalHead(Document):
    """What the outcome depends on, by the words that a user knows it by; see `check_same`."""

    SCHEMA: ClassVar[str] = "owl-compress/journal/1"

    schema_: Literal["owl-compress/journal/1"] = Field(default="owl-compress/journal/1", alias="schema")
    depends_on: dict[str, str]

    def check_same(self, now: Mapping[str, str], where: str, again: str) -> None:
        """Refuse to go on where anything is different `now`; `again` is how to start over.

        Raises:
            KeptError: naming the first thing that differs, what it was and what it is.
        """
        for name in sorted(self.depends_on.keys() | now.keys(), key=lambda one: (one not in now, one)):
            then, here = self.depends_on.get(name, "absent"), now.get(name, "absent")
            if then != here:
                raise KeptError(
                    f"--resume: {name} differs: {then} in the unfinished run in {where}, {here} now; give "
                    f"what was given then, or {again}"
                )


class SeenInput(Frozen):
    """What was seen of an input of the dense model: the linears that read it, and Σ x_j² over all tokens."""

    linears: tuple[Name, ...]
    n_tokens: Count
    second_moments: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...]


class SeenBlock(Frozen):
    """Inputs of the linears of one block, in the order in which it calls them."""

    inputs: tuple[SeenInput, ...]


class SeenModel(Frozen):
    """The same of all blocks, by name."""

    blocks: dict[str, SeenBlock]


class MeasuredBlock(Frozen):
    """Importance of one block, and what was seen of its inputs on the way."""

    report: BlockReport
    seen: SeenBlock


class MeasuredModel(Frozen):
    """The same of all blocks."""

    report: ImportanceReport
    seen: SeenModel


class TriedLevel(Frozen):
    """What came of one trial: the `number` of those made together, its damage, and what was carried out."""

    number: Count
    damage: float
    budgets: dict[str, float]


class TriedTogether(Frozen):
    """What came of trials that were made together; `refused` says why some were passed over, by part."""

    tried: tuple[TriedLevel, ...]
    refused: dict[str, str] = Field(default_factory=dict)


class JudgedPlan(Frozen):
    """A plan as it was carried out, and its damage."""

    plan: Plan
    damage: float


class ComparedPlans(Frozen):
    """Damages of several plans, None where the model overflows."""

    damages: tuple[float | None, ...]


def check_same_method(then: MethodRecord, now: MethodRecord) -> None:
    """Refuse to go on where the memory there is has another say in how a backend runs than it had before.

    Raises:
        KeptError: naming what came out otherwise.
    """
    here = MethodRecord.model_validate_json(now.model_dump_json())
    for name, value in here.parameters.items():
        before = then.parameters.get(name)
        if before != value:
            raise KeptError(
                f"--resume: backend {now.name!r} was left to choose {name} by the memory there is, which was "
                f"{before} and is {value} now: free as much memory as there was, or start over naming one"
            )
