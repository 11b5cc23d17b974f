"""Plans carried out on copies of a model that stays dense, and judged by the damage that they do.

What was found of a plan is noted, and what it costs is counted whether it is found or read: a refinement that
goes on spends, and so decides, as one that was never cut off. A plan whose damage is noted is carried out
again only where somebody asks for its model.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import isfinite

import torch
from torch import nn

from owl_compress.compression.contract import Backend, GradientReader, Surveyed
from owl_compress.compression.demands import salience_for
from owl_compress.compression.driver import WalkOptions, compress_with_
from owl_compress.compression.gradient_memory import windows_of_gradients
from owl_compress.compression.journal import Journal
from owl_compress.compression.statistics import asked_statistics
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.journal import JudgedPlan, TriedLevel, TriedTogether
from owl_compress.documents.notes import NO_NOTES, Notes
from owl_compress.documents.plan import Plan
from owl_compress.documents.provenance import StatisticsSource
from owl_compress.errors import RequestError
from owl_compress.importance.damage import Bench, Divergence, Trial, Tried
from owl_compress.importance.reference import DenseReference
from owl_compress.models.structure import ModelStructure, found_again
from owl_compress.progress import SILENT, Progress
from owl_compress.refinement.spending import Passes, Spending
from owl_compress.walk.blocks import BlockWalk
from owl_compress.walk.dense_statistics import DenseStatistics, gather_dense
from owl_compress.walk.gradients import Salience


@dataclass(frozen=True)
class WorkOptions:
    """How work is done: where, how many windows at a time, whose inputs the backend is told of, who is told.

    Attributes:
        device: where blocks are run; None for where the model is.
        batch_size: windows of the statistics per forward pass.
        statistics: see `owl_compress.compression.driver.compress_with_`.
        progress: who is told how far a step is.
        announce: called with the tokens that it may take, and the seconds that these are about.
        notes: of this very refinement, where it may have been cut off.
    """

    device: torch.device | None = None
    batch_size: int = 1
    statistics: StatisticsSource = "sequential"
    progress: Progress = SILENT
    announce: Callable[[float, float], None] = field(default=lambda _tokens, _seconds: None)
    notes: Notes = NO_NOTES


@dataclass(frozen=True)
class CarriedOut:
    """A compressed copy of the model, and the plan as it was carried out: where whole units go, these."""

    model: nn.Module
    structure: ModelStructure
    plan: Plan


@dataclass(frozen=True)
class Standing:
    """A plan that was carried out on a copy of the model, and its damage on the windows of the gate.

    Attributes:
        plan: what was carried out.
        damage: see above.
        carry_out: does it, or hands back what was done.
    """

    plan: Plan
    damage: float
    carry_out: Callable[[], CarriedOut]

    @cached_property
    def _carried_out(self) -> CarriedOut:
        return self.carry_out()

    @property
    def model(self) -> nn.Module:
        """The copy of the model."""
        return self._carried_out.model

    @property
    def structure(self) -> ModelStructure:
        """Its blocks."""
        return self._carried_out.structure

    @cached_property
    def values(self) -> dict[str, float]:
        """Budget of each linear, by name."""
        return {budget.name: budget.value for budget in self.plan.budgets}


@dataclass(frozen=True)
class Workshop:
    """A dense model and who compresses it; everything is settled.

    Attributes:
        model: stays dense.
        structure: its blocks.
        backend: who compresses.
        calibration: what the backend sees; None if it reads no text.
        judge: the dense predictions on the windows that plans are judged by.
        options: how work is done.
        device: where blocks are run.
        spending: what is counted.
    """

    model: nn.Module
    structure: ModelStructure
    backend: Backend
    calibration: TokenWindows | None
    judge: DenseReference
    options: WorkOptions
    device: torch.device
    spending: Spending

    @cached_property
    def passes(self) -> Passes:
        """What goes through the model for the backend's statistics."""
        return passes_of(self.backend, self.calibration, self.options.statistics)

    @property
    def cost_of_standing(self) -> float:
        """Tokens that carrying a plan out and judging it takes."""
        return self.passes.of_execution + self.judge.windows.ids.numel()

    def standing(self, plan: Plan) -> Standing:
        """Carry out `plan` on a copy, and judge it.

        Raises:
            RequestError: what the backend refuses; or a damage that is none.
        """
        made: list[CarriedOut] = []

        def judged(notes: Notes) -> JudgedPlan:
            made.append(self._carried_out(plan, notes))
            damage = self.judge.divergence_of(made[0].model, self.options.progress)
            if not isfinite(damage):
                raise RequestError(
                    f"the damage of the plan is {damage}: the model or its data type overflows once it is "
                    "compressed; try --dtype float32, or a plan that keeps more"
                )
            return JudgedPlan(plan=made[0].plan, damage=damage)

        if self._tells_dense:
            self.spending.add_once("statistics of the dense model", self.passes.n_tokens)
        found = self.options.notes.step(f"plan-{plan.fingerprint[:16]}", JudgedPlan, judged)
        self.spending.add(self.cost_of_standing)
        again = partial(self._carried_out, plan, NO_NOTES)
        return Standing(found.plan, found.damage, partial(made.__getitem__, 0) if made else again)

    def _carried_out(self, plan: Plan, notes: Notes) -> CarriedOut:
        model = deepcopy(self.model)
        structure = found_again(model, self.structure)
        surveyed: list[Surveyed] = []
        compress_with_(
            model,
            plan,
            self.backend,
            self.calibration,
            WalkOptions(
                self.device,
                self.options.batch_size,
                progress=self.options.progress,
                after_survey=surveyed.append,
                journal=_journal(notes),
            ),
            structure=structure,
            partial=True,
            statistics=self._dense_statistics(plan) or "sequential",
        )
        return CarriedOut(model, structure, _as_carried_out(plan, surveyed[-1].plan))

    @property
    def _tells_dense(self) -> bool:
        """Whether the backend is told of what the linears of the dense model read."""
        return self.options.statistics == "dense" and bool(self.passes.n_tokens)

    _gathered: list[DenseStatistics] = field(default_factory=list, init=False, repr=False)

    def _dense_statistics(self, plan: Plan) -> DenseStatistics | None:
        """What the linears of the dense model read, gathered once; None where nobody is told of that."""
        if not self._tells_dense or self.calibration is None:
            return None
        if not self._gathered:
            names = {budget.name for budget in plan.budgets}
            walk = self.walk(self.calibration)
            self._gathered.append(gather_dense(walk, self.calibration.record, names, self.options.progress))
        return self._gathered[0]

    @cached_property
    def salience(self) -> Mapping[str, Salience]:
        """Gradients of the dense model, for a backend that reads them."""
        self._count_gradients()
        return salience_for(
            self.backend,
            self.model,
            self.structure,
            self.calibration,
            set(self.structure.linear_sizes),
            device=self.device,
            batch_size=self.options.batch_size,
            progress=self.options.progress,
        )

    def _count_gradients(self) -> None:
        self.spending.add_once("gradients", self.passes.of_gradients)

    def walk(self, windows: TokenWindows | None, at: Standing | None = None) -> BlockWalk:
        """A walk over the dense model, or that `at` a plan, on some windows; on none it runs nothing."""
        batches = windows.batches(self.options.batch_size) if windows is not None else ()
        of = at or self
        return BlockWalk.together(of.model, of.structure, batches, device=self.device)

    @property
    def seen(self) -> TokenWindows | None:
        """The windows that statistics of trials are taken on; None where the backend asks for none."""
        return self.calibration if self.backend.statistic is not None else None

    def tried(self, at: Standing, trials: Sequence[Trial], reference: DenseReference) -> list[Tried]:
        """Damage, against the dense model, of budgets of one block after the other in the compressed model.

        Raises:
            RequestError: see `Bench.tried`.
        """
        self._count_gradients()
        self.spending.add(self.cost_of_trials(trials, reference))

        def made(notes: Notes) -> TriedTogether:
            bench = self._bench(at, reference, notes)
            tried = bench.tried(trials, self.options.progress, "trying moves")
            numbers = {id(trial): number for number, trial in enumerate(trials)}
            return TriedTogether(
                tried=tuple(
                    TriedLevel(number=numbers[id(one.trial)], damage=one.damage, budgets=dict(one.budgets))
                    for one in tried
                )
            )

        found = self.options.notes.step(f"moves-{at.plan.fingerprint[:16]}", TriedTogether, made)
        return [Tried(trials[one.number], one.damage, one.budgets) for one in found.tried]

    def _bench(self, at: Standing, reference: DenseReference, notes: Notes) -> Bench:
        is_dense = self.options.statistics == "dense"
        damaged = BlockWalk(
            at.model, at.structure, reference.windows.batches(reference.batch_size), device=self.device
        )
        return Bench(
            seen=self.walk(self.seen, None if is_dense else at),
            damaged=damaged,
            dense=self.structure.blocks,
            backend=self.backend,
            grid=at.plan.grid,
            measure=Divergence(reference.distribution(at.model, at.structure)),
            salience=self.salience,
            notes=notes,
        )

    def cost_of_trials(self, trials: Sequence[Trial], reference: DenseReference) -> float:
        """Tokens that these trials take: each runs its block and those after it."""
        places = {site.name: index for index, site in enumerate(self.structure.blocks)}
        n_blocks = len(places)
        runs = sum(n_blocks - places[trial.block] for trial in trials) / n_blocks
        n_seen = self.passes.of_trials if self.backend.statistic is not None else 0.0
        return n_seen + reference.windows.ids.numel() * (1 + runs)


def _journal(notes: Notes) -> Journal | None:
    """Where blocks are kept that are done, until the plan is judged."""
    if notes.folder is None:
        return None
    notes.folder.mkdir(parents=True, exist_ok=True)
    return Journal(notes.folder)


def passes_of(backend: Backend, windows: TokenWindows | None, source: StatisticsSource) -> Passes:
    """What goes through the model for the statistics that a backend takes on these windows."""
    n_tokens = windows.ids.numel() if asked_statistics(backend) and windows is not None else 0
    n_gradient_tokens = 0
    if windows is not None and isinstance(backend, GradientReader) and backend.reads_gradients:
        n_gradient_tokens = windows_of_gradients(backend, windows).ids.numel()
    survey = backend.survey
    surveys = survey is not None and survey.statistic is not None
    return Passes(n_tokens, n_gradient_tokens, surveys, source == "dense")


def _as_carried_out(plan: Plan, surveyed: Plan) -> Plan:
    """`plan` with the whole units that a survey made of it, if it did; its bounds give way to these."""
    values = {budget.name: budget.value for budget in surveyed.budgets}
    return with_values(plan, values)


def with_values(plan: Plan, values: Mapping[str, float]) -> Plan:
    """`plan` with other budgets for some linears; its bounds give way to whole units beyond them."""
    budgets = [
        {**budget.model_dump(), "value": values.get(budget.name, budget.value)} for budget in plan.budgets
    ]
    found = [budget["value"] for budget in budgets]
    bounds = {"low": min(plan.low, *found), "high": max(plan.high, *found)}
    return Plan.model_validate({**plan.model_dump(), **bounds, "budgets": budgets})
