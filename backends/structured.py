"""Structured removal: whole attention heads and FFN channels go, and a smaller dense block stays."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from time import perf_counter
from typing import Any, ClassVar

from torch import Tensor

from owl_compress.backends.block_widths import BlockWidths, Rounding
from owl_compress.backends.parts import PlannedBlock, find_parts
from owl_compress.backends.repair import output_energy, repair_columns
from owl_compress.backends.solver import check_damping, gram_of
from owl_compress.backends.uniform_width import check_any_widths, check_no_part_is_gone, check_widths
from owl_compress.backends.unit_importance import (
    HeadChoice,
    Importance,
    TaylorVariant,
    UnitScore,
    highest,
    highest_heads,
)
from owl_compress.backends.width_survey import WidthSurvey
from owl_compress.checkpoints.stock import to_stock_
from owl_compress.compression.contract import Surveyed
from owl_compress.compression.tasks import BlockTask, GroupTask, LinearOutcome, LinearTask
from owl_compress.documents.plan import Plan
from owl_compress.documents.result import Fallback
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.forms.narrowing import KeptUnits, keep_units_
from owl_compress.models.anatomy import Attention, FeedForward, Slot
from owl_compress.models.structure import ModelStructure
from owl_compress.options import option
from owl_compress.walk.input_statistics import Gram, SecondMoments, Statistic

_OF_GRADIENTS = ("taylor_variant", "gradient_samples")
_GRADIENT_SAMPLES = 16


@dataclass(frozen=True)
class Structured:
    """Remove the least important heads and channels of every block (LLM-Pruner, arXiv 2305.11627).

    A survey of the dense model turns the shares of the plan into whole numbers of key-value heads, of query
    heads for each of them and of channels (see `widths`); which of them stay is decided block by block, on
    the outputs of the blocks already cut. Where we differ from LLM-Pruner: the numbers follow any plan and
    are met to the step, key-value heads are counted, and by default importance needs no gradients.

    Args:
        importance: what makes a unit matter, see `UnitScore`. The default needs forward passes alone
            and was better than "taylor" in most pairs measured; "auto" is "taylor" where memory holds the
            gradients, else "wanda".
        taylor_variant: for importance "taylor".
        gradient_samples: sequences that importance "taylor" takes gradients on, 16 unless said otherwise;
            LLM-Pruner takes ten short ones.
        round_to: channels stay in multiples of this, or all.
        repair: refit the output projections by least squares, see `repair`.
        damping: of the repair, as a share of the mean diagonal.
        allow_empty: let a part go whole where its share is nearer to nothing than to one unit.
        uniform_width: the same numbers for every block.
        seed: for importance "random".
    """

    importance: Importance = option(
        Importance.WANDA,
        "What ranks heads and channels; auto is taylor where memory holds its gradients, else wanda.",
    )
    taylor_variant: TaylorVariant | None = option(None, "With taylor: sums by element (the usual) or vector.")
    gradient_samples: int | None = option(
        None, "With taylor: calibration sequences to take gradients on; 16.", at_least=1
    )
    round_to: int = option(64, "FFN channels stay a multiple of this.", at_least=1)
    repair: bool = option(False, "Refit output projections by least squares.")
    damping: float = option(0.01, "Share of the mean diagonal that is added to the Hessian's.", at_least=0)
    allow_empty: bool = option(False, "Let a sublayer go whole.")
    uniform_width: bool = option(False, "Same widths in every block, saved as a stock checkpoint.")
    seed: int = option(0, "With random: which draw.")

    name: ClassVar[str] = "structured"
    unit: ClassVar[Unit] = Unit.WIDTH

    def __post_init__(self) -> None:
        object.__setattr__(self, "importance", Importance(self.importance))  # plain text will do
        self._settle_gradients()
        if self.round_to < 1:
            raise RequestError(f"round_to {self.round_to} is below 1: channels stay in multiples of it")
        check_damping(self.damping)

    def _settle_gradients(self) -> None:
        """Give the options of gradients their values where gradients may be taken; refuse them elsewhere."""
        given = {name: getattr(self, name) for name in _OF_GRADIENTS}
        if self.importance not in {Importance.TAYLOR, Importance.AUTO}:
            for name, value in given.items():
                if value is not None:
                    shown = name.replace("_", "-")
                    raise RequestError(
                        f"{shown} goes with importance taylor or auto: name one, or drop {shown}"
                    )
            return
        variant, samples = given["taylor_variant"], given["gradient_samples"]
        samples = _GRADIENT_SAMPLES if samples is None else samples
        if samples < 1:
            raise RequestError(f"gradient_samples {samples} is below 1: gradients need text")
        object.__setattr__(self, "taylor_variant", TaylorVariant(variant or TaylorVariant.ELEMENT))
        object.__setattr__(self, "gradient_samples", samples)

    @property
    def statistic(self) -> type[Statistic] | None:
        """Gram matrices for the repair, else second moments if importance needs the calibration text."""
        if self.repair:
            return Gram
        needs_none = self.importance in {Importance.MAGNITUDE, Importance.RANDOM}
        return None if needs_none else SecondMoments

    @property
    def reads_gradients(self) -> bool:
        """Whether importance is taken from the gradients of the dense model."""
        return self.importance is Importance.TAYLOR

    @property
    def leaves_gradients_open(self) -> bool:
        """Whether memory is to decide if gradients are taken."""
        return self.importance is Importance.AUTO

    def settled(self, *, memory_holds_gradients: bool) -> tuple["Structured", str]:
        """With importance "taylor" where memory holds the gradients, else "wanda", which needs none."""
        settled = self._with(Importance.TAYLOR if memory_holds_gradients else Importance.WANDA)
        return settled, f"importance auto ran as {settled.importance}"

    def _with(self, importance: Importance) -> "Structured":
        """The same with another importance, and options of gradients only where it takes them."""
        dropped: dict[str, Any] = {} if importance is Importance.TAYLOR else dict.fromkeys(_OF_GRADIENTS)
        return replace(self, importance=importance, **dropped)

    @property
    def error_measure(self) -> str:
        """How far the statistic lets the error of an output be told."""
        if self.statistic is None:
            return "share of the squared weights of the part's output projection removed"
        exact = "squared output error of the part over its squared output"
        return exact if self.repair else f"{exact}, as if the inputs of its last linear were uncorrelated"

    @property
    def survey(self) -> WidthSurvey:
        """The one that finds the whole numbers."""
        return WidthSurvey(self.score, Rounding(self.round_to, self.allow_empty, self.uniform_width))

    @property
    def score(self) -> UnitScore:
        """How units are compared."""
        return UnitScore(self.importance, self.taylor_variant or TaylorVariant.ELEMENT, self.seed)

    @property
    def equal_shares_stand_for_all(self) -> bool:
        """Not where a part may go whole: which of them go depends on the plan."""
        return not self.allow_empty

    def check_plan(self, structure: ModelStructure, plan: Plan) -> None:
        """Refuse what the survey would refuse: it is the same one, with chance for importance.

        Raises:
            RequestError: see `WidthSurvey`; or a uniform width for blocks that have lost a part.
        """
        self.rehearsed(structure, plan)

    def rehearsed(self, structure: ModelStructure, plan: Plan) -> Surveyed:
        """What the survey makes of `plan` where chance decides what importance will.

        Raises:
            RequestError: see `check_plan`.
        """
        if self.uniform_width:
            check_no_part_is_gone(structure)
        values = {budget.name: budget.value for budget in plan.budgets}
        survey = self._with(Importance.RANDOM).survey
        for site in structure.blocks:
            tasks = (LinearTask(one, values[one.name]) for one in site.linears if one.name in values)
            groups = tuple(GroupTask((task,), None) for task in tasks)
            if groups:
                survey.see(BlockTask(site, groups, plan.grid))
        return survey.redistribute(plan)

    def check_finish(
        self, model: Any, structure: ModelStructure, plan: Plan, surveyed: Surveyed | None = None
    ) -> None:
        """Refuse a uniform width that no stock model could have, before any block is cut.

        Raises:
            RequestError: see `finish_`.
        """
        if not self.uniform_width:
            return
        if surveyed is not None:
            check_widths(model, structure, surveyed.decisions)
        else:
            check_any_widths(model, structure, self.rehearsed(structure, plan).decisions)

    def finish_(self, model: Any) -> None:
        """With a uniform width, turn the narrowed model into an ordinary one.

        Raises:
            RequestError: widths that the stock model cannot have.
        """
        if self.uniform_width:
            to_stock_(model)

    def compress_block_(self, task: BlockTask) -> Sequence[LinearOutcome]:
        """Cut the block of `task` in place, to shares that are those of whole units."""
        start = perf_counter()
        block, widths = find_parts(task), task.decision
        if not isinstance(widths, BlockWidths):
            raise TypeError(f"no survey has decided how many heads and channels {task.site.name} keeps")
        sizes = {name: view.task.site.n_weights for name, view in block.linears.items()}
        changes = dict.fromkeys(sizes, _Change(0.0))
        kept = KeptUnits()
        # Both parts are chosen before either is cut: the statistics are those of the block as it came.
        if block.mlp and (channels := self._channels(block, block.mlp, widths)) is not None:
            kept = replace(kept, channels=channels)
            columns = _output_columns(block.mlp.channels, block.mlp.output, channels)
            changes |= self._change_(block, block.mlp_units, block.mlp.output, columns)
        if block.attention and (choice := self._heads(block, block.attention, widths)) is not None:
            kept = replace(kept, heads=choice.heads, kv_heads=choice.kv_heads)
            columns = _output_columns(block.attention.queries, block.attention.output, choice.heads)
            changes |= self._change_(block, block.attention_units, block.attention.output, columns)
        keep_units_(task.site, block.anatomy, kept)
        seconds = (perf_counter() - start) / sum(sizes.values())
        return [
            LinearOutcome(
                name,
                achieved=view.task.site.n_weights / sizes[name],
                relative_error=changes[name].relative_error,
                seconds=seconds * sizes[name],
                fallbacks=changes[name].fallbacks,
            )
            for name, view in block.linears.items()
        ]

    def _channels(self, block: PlannedBlock, mlp: FeedForward, widths: BlockWidths) -> Tensor | None:
        """The channels that stay; None where all do."""
        n_kept = widths.channels
        if n_kept is None or n_kept == mlp.n_channels:
            return None
        return highest(block.channel_importance(mlp, self.score), n_kept)

    def _heads(self, block: PlannedBlock, attention: Attention, widths: BlockWidths) -> HeadChoice | None:
        """The heads that stay; None where all do."""
        if widths.level is None:
            return None
        n_kv_heads, n_per_group = widths.level.kv_heads, widths.level.queries_per_group
        if n_kv_heads * n_per_group == attention.n_heads:
            return None
        return highest_heads(*block.head_importance(attention, self.score), n_kv_heads, n_per_group)

    def _change_(
        self, block: PlannedBlock, names: Iterable[str], output: str, kept: Tensor
    ) -> dict[str, "_Change"]:
        """What leaving the columns `kept` of a part's output projection does, told for each of its linears.

        With `repair` these columns are refitted in place.
        """
        view = block.linears[output]
        weight, statistic = view.task.site.weight, view.statistic
        kept = kept.to(weight.device)
        energy = output_energy(weight, statistic)
        difference = weight.float().index_fill(1, kept, 0.0)
        lost = output_energy(difference, statistic)
        fallbacks: tuple[Fallback, ...] = ()
        if self.repair and len(kept):
            repaired = repair_columns(weight, gram_of(statistic).matrix, kept, self.damping, output)
            columns = repaired.columns.to(weight.dtype)
            difference[:, kept] = weight[:, kept].float() - columns.float()
            lost_still = output_energy(difference, statistic)
            fallbacks = repaired.fallbacks
            if lost_still <= lost:
                weight[:, kept] = columns
                lost = lost_still
            else:
                fallbacks += (Fallback(what="repair left out: rounding undoes it", where=output),)
        if not isfinite(lost) or not isfinite(energy):
            raise RequestError(
                f"{output} holds NaN or Inf, or overflows: check the checkpoint, or try --dtype float32"
            )
        changed = dict.fromkeys(names, _Change(lost / energy if energy else 0.0))
        return changed | {output: replace(changed[output], fallbacks=fallbacks)}


@dataclass(frozen=True)
class _Change:
    """What a linear's part loses of its output, and what was done differently on the way."""

    relative_error: float
    fallbacks: tuple[Fallback, ...] = ()


def _output_columns(slots: Sequence[Slot], output: str, kept: Tensor) -> Tensor:
    """The columns of the output projection that the units `kept` feed."""
    (index,) = (slot.index for slot in slots if slot.linear == output and slot.axis == "in")
    return index.cpu()[kept].flatten()  # [kept, entries] -> [columns]
