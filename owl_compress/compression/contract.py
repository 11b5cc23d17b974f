"""What a backend is, stated so that the driver can run any of them without knowing one.

The backends themselves lie in `owl_compress.backends`; what they are given and hand back is in `tasks`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch

from owl_compress.compression.tasks import BlockTask, LinearOutcome
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import Plan
from owl_compress.documents.provenance import StatisticsSource
from owl_compress.documents.stored_format import StoredFormat
from owl_compress.documents.units import Unit
from owl_compress.forms.codes import CodeFormat
from owl_compress.models.structure import ModelStructure
from owl_compress.walk.input_statistics import Statistic


@dataclass(frozen=True)
class Surveyed:
    """What a survey came to: the plan to carry out, and by block what the backend will want to know of it."""

    plan: Plan
    decisions: Mapping[str, object] = field(default_factory=dict)


class Survey(Protocol):
    """A look at the whole dense model before the first block is touched (comparison across the model).

    `statistic` is what it must know of a linear's inputs. With `restates` the values of its plan are what the
    linears are asked for, in the place of those it was given; else they are the nearest that can be carried
    out, and the result says what was asked in the first place.
    """

    restates: ClassVar[bool]

    @property
    def own_division(self) -> str | None:
        """Why all that it takes from a plan is the total, and the remedy; None where it keeps to the plan."""
        ...

    @property
    def statistic(self) -> type[Statistic] | None:
        """The statistic that `see` wants."""
        ...

    def see(self, task: BlockTask) -> None:
        """Take notes of one dense block."""
        ...

    def redistribute(self, plan: Plan) -> Surveyed:
        """The plan that follows from the notes, with the same total, or as near below it as can be."""
        ...


@runtime_checkable
class BlockwiseSurvey(Survey, Protocol):
    """A survey whose notes are enough: the weights of a block may be gone once it was seen."""

    is_blockwise: ClassVar[Literal[True]]


@runtime_checkable
class Backend(Protocol):
    """A way to carry out a plan, block by block.

    `name` is what it is registered as, `unit` the plan's unit that it understands, `statistic` what it must
    know of a linear's inputs, `error_measure` what its `relative_error` figures mean, `survey` a first look
    at the whole model, if it needs one. A backend is a frozen dataclass; its fields are its options (see
    `owl_compress.options`) and are recorded in the result. What only some backends need is in the further
    protocols below: the driver asks for each by its methods.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    name: ClassVar[str]
    unit: ClassVar[Unit]

    @property
    def statistic(self) -> type[Statistic] | None:
        """The statistic of its inputs that a linear comes with; it may depend on the options."""
        ...

    @property
    def error_measure(self) -> str:
        """One line for the result."""
        ...

    @property
    def survey(self) -> Survey | None:
        """A fresh survey, or None."""
        ...

    def compress_block_(self, task: BlockTask) -> Sequence[LinearOutcome]:
        """Compress the linears of `task` in place, each to its budget."""
        ...


@runtime_checkable
class ApartSolver(Protocol):
    """A backend whose outcome for linears that share an input depends on no other linear of the block.

    Several processes may then solve some groups of a block each.
    """

    solves_groups_apart: ClassVar[bool]


@runtime_checkable
class GradientReader(Protocol):
    """A backend that may also want the gradients of the loss, taken on the dense model."""

    @property
    def reads_gradients(self) -> bool:
        """Whether it does, with the options it has."""
        ...

    @property
    def gradient_samples(self) -> int | None:
        """On how many of the calibration sequences, at most; None where it reads no gradients."""
        ...


@runtime_checkable
class GradientChooser(GradientReader, Protocol):
    """One that may leave it to the memory there is whether it takes gradients."""

    @property
    def leaves_gradients_open(self) -> bool:
        """Whether it does, with the options it has."""
        ...

    def settled(self, *, memory_holds_gradients: bool) -> tuple[Backend, str]:
        """The backend that takes them, or does without, and in words what it became."""
        ...


@runtime_checkable
class StatisticsChooser(Protocol):
    """A backend that is better told of other inputs than those behind the compressed blocks, or as well."""

    def usual_statistics(self, target: float) -> StatisticsSource:
        """Whose inputs it is told of where nobody says, for a plan of this target."""
        ...


@runtime_checkable
class PlanChecker(Protocol):
    """A backend that can tell from shapes alone whether a plan can be carried out."""

    @property
    def equal_shares_stand_for_all(self) -> bool:
        """Whether a budget that it can meet with equal shares can be met by every plan."""
        ...

    def check_plan(self, structure: ModelStructure, plan: Plan) -> None:
        """Refuse a plan that cannot; nothing is run and nothing changed."""
        ...


@runtime_checkable
class Rehearser(Protocol):
    """A backend that rounds plans, and can tell from shapes alone about what to."""

    def rehearsed(self, structure: ModelStructure, plan: Plan) -> Surveyed:
        """What it would carry out, as far as it can tell; refused where `plan` cannot be carried out."""
        ...


@runtime_checkable
class ModelFinisher(Protocol):
    """A backend that makes something else of the compressed model before that is stored."""

    def finish_(self, model: Any) -> None:
        """Do so, in place."""
        ...


@runtime_checkable
class FinishChecker(ModelFinisher, Protocol):
    """One that can tell from shapes alone whether it will be able to."""

    def check_finish(
        self, model: Any, structure: ModelStructure, plan: Plan, surveyed: Surveyed | None = None
    ) -> None:
        """Refuse what `finish_` would refuse; before the survey only what no outcome of it would mend."""
        ...


@runtime_checkable
class Quantizer(Protocol):
    """A backend whose outcome is integer codes."""

    @property
    def code_format(self) -> CodeFormat:
        """How it groups its codes."""
        ...


@runtime_checkable
class CheckpointBackend(Protocol):
    """A way to carry out a plan on a whole checkpoint folder, by a package with its own walk and format.

    `name`, `unit`, `statistic` and `error_measure` as in `Backend`; `stored_format` describes what it writes.
    A frozen dataclass, too.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    name: ClassVar[str]
    unit: ClassVar[Unit]
    statistic: ClassVar[type[Statistic] | None]
    error_measure: ClassVar[str]
    stored_format: ClassVar[StoredFormat]

    def check_ready(self, plan: Plan | None = None) -> None:
        """Refuse what can be refused before any work: a package that is missing, a plan it cannot store."""
        ...

    def compress_checkpoint(
        self, dense: Path, plan: Plan, windows: TokenWindows, device: torch.device, out: Path
    ) -> Sequence[LinearOutcome]:
        """Write the checkpoint in `dense`, compressed, into the existing folder `out`; outcomes by the plan.

        Each outcome hands back the codes that were saved.
        """
        ...


AnyBackend = Backend | CheckpointBackend
