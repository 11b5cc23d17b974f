"""The driver: walks the blocks of a model and has a backend compress each one, exactly to the plan."""

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from time import perf_counter
from typing import Literal

import torch
from torch import nn

from owl_compress.compression.account import Account, Stored, method_record
from owl_compress.compression.contract import Backend, Surveyed
from owl_compress.compression.demands import check_in_memory, check_request, salience_for, wants_text
from owl_compress.compression.dividing import solve_together_
from owl_compress.compression.gradient_memory import settled_backend
from owl_compress.compression.journal import Journal
from owl_compress.compression.statistics import asked_statistics, check_statistics, check_windows
from owl_compress.compression.tasks import BlockTask, GroupTask, LinearOutcome, LinearTask
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.coverage import check_covered
from owl_compress.documents.journal import SeenModel
from owl_compress.documents.measurements import Footprint, FootprintChange
from owl_compress.documents.notes import NO_NOTES, Notes
from owl_compress.documents.plan import Plan
from owl_compress.documents.provenance import CalibrationRecord, ModelIdentity, StatisticsSource
from owl_compress.documents.result import Fallback, Result
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.forms.codes import keep_codes_, stored_bits
from owl_compress.models.coverage import coverage_of
from owl_compress.models.footprint import footprint
from owl_compress.models.residence import is_streamed
from owl_compress.models.state import check_finite, identify, n_parameters, parameter_device
from owl_compress.models.structure import LinearSite, ModelStructure, find_structure
from owl_compress.progress import SILENT, Progress
from owl_compress.walk.agreement import settled_structure
from owl_compress.walk.blocks import BlockVisit, BlockWalk
from owl_compress.walk.dense_statistics import DenseStatistics, gather_dense
from owl_compress.walk.gathering import LinearGroup
from owl_compress.walk.gradients import Salience
from owl_compress.walk.input_statistics import SecondMoments, Statistic
from owl_compress.walk.states import KeepOn


@dataclass(frozen=True)
class WalkOptions:
    """How the walk runs: where, how many sequences at a time, and who is told about it.

    `after_survey` is called with what is going to be carried out, and `before_change` before each block that
    is compressed: the first time, no weight is changed yet. `journal` keeps each block that is done, and has
    those that were done before; `notes` are of what is seen of the dense model on the way. A survey need not
    look again at what was `seen` of it before.
    """

    device: torch.device | None = None
    batch_size: int = 1
    keep_on: KeepOn = None
    progress: Progress = SILENT
    before_change: Callable[[], None] = lambda: None
    after_survey: Callable[[Surveyed], None] = lambda _: None
    journal: Journal | None = None
    notes: Notes = NO_NOTES
    seen: DenseStatistics | None = None


def compress_with_(
    model: nn.Module,
    plan: Plan,
    backend: Backend,
    calibration: TokenWindows | None = None,
    options: WalkOptions | None = None,
    *,
    structure: ModelStructure | None = None,
    identity: ModelIdentity | None = None,
    partial: bool = False,
    statistics: StatisticsSource | DenseStatistics = "sequential",
) -> Result:
    """Compress `model` in place, block by block.

    Args:
        model: a causal language model on the host or on a device; its weights stay there.
        plan: budgets in the unit of the backend, for exactly this model's linears.
        backend: see `contract.Backend`; what it leaves to the memory there is, is settled first.
        calibration: token windows, shape [sequences, seq_len]; not needed by backends without statistics.
        options: how the walk runs.
        structure: of the model, where it was found already.
        identity: what the result says about the model; by default read from its config.
        partial: go on where less than half of the weights in the blocks is in linears.
        statistics: whose inputs the backend is told of: each block's as it reads the outputs of the
            compressed blocks before it ("sequential"), or each linear's behind the compressed ones before it
            in its own block, too ("true-sequential"), or the dense model's, which takes a single pass
            ("dense"), or none where they are there already.

    Raises:
        RequestError: plan of another model or unit, calibration missing, NaN or Inf in weights or
            activations, a backend that dense statistics are not enough for.
    """
    start = perf_counter()
    structure = structure or find_structure(model)
    options = options or WalkOptions()
    device = options.device or parameter_device(model)
    check_request(plan, backend, calibration, structure)
    check_statistics(backend, statistics)
    check_in_memory(model, backend)
    if is_streamed(model) and options.journal is None:
        options = replace(options, journal=Journal.until_gone(model))
    check_finite(model)  # of a broken linear in an early block, a walk would blame a later one
    if calibration is not None and wants_text(backend):
        structure = _settled(model, structure, plan, calibration, device)
    coverage = coverage_of(structure)
    check_covered(coverage, partial=partial)
    backend, chosen = settled_backend(backend, model, structure, calibration, options.batch_size, device)
    if options.journal is not None:
        options.journal.settle(method_record(backend))
    notes = (*structure.notes, *chosen)
    identity = identity or identify(model, structure)
    account = Account(plan, identity, notes, calibration, device, start, coverage)
    before, n_params_before = _footprint(model, structure, plan), n_parameters(model)
    names = {budget.name for budget in plan.budgets}
    salience = salience_for(
        backend,
        model,
        structure,
        calibration,
        names,
        device=device,
        batch_size=options.batch_size,
        progress=options.progress,
    )
    driver = _Driver(model, structure, backend, calibration, options, device, salience)
    asks_for_statistics = bool(asked_statistics(backend))
    if asks_for_statistics:
        driver = driver.told_of(statistics, names)
    surveyed = driver.for_survey(names).survey(plan)
    options.after_survey(surveyed)
    asked = surveyed.plan if backend.survey and backend.survey.restates else plan
    outcomes = driver.compress_(surveyed)
    n_params_after = n_parameters(model)
    stored = Stored(stored_bits(model) / n_params_after, None, n_params_before, n_params_after)
    result = account.result(method_record(backend), backend.error_measure, asked, outcomes, stored)
    source = driver.source if asks_for_statistics else None
    footprint_change = _change(before, _footprint(model, structure, plan))
    return result.model_copy(update={"footprint": footprint_change, "statistics": source})


def _footprint(model: nn.Module, structure: ModelStructure, plan: Plan) -> Footprint | None:
    """What the model costs as it is now, where the plan may change that."""
    return footprint(model, structure) if plan.unit is Unit.WIDTH else None


def _change(before: Footprint | None, after: Footprint | None) -> FootprintChange | None:
    return FootprintChange(before=before, after=after) if before and after else None


def _settled(
    model: nn.Module, structure: ModelStructure, plan: Plan, calibration: TokenWindows, device: torch.device
) -> ModelStructure:
    """The structure as the walk will find it, which the plan has to suit."""
    settled = settled_structure(model, structure, calibration.ids, device)
    for budget in plan.budgets:
        if budget.name in settled.uncalled:
            raise RequestError(
                f"{budget.name} has a budget, but the model does not call it on text, so that nothing is "
                "known of its inputs: leave it out with --skip"
            )
    return settled


def _without_turn(outcome: LinearOutcome) -> LinearOutcome:
    """The outcome of a linear that should have been told of its inputs in turn."""
    fallback = Fallback(what="no turn of its own in its block", where=outcome.name)
    return replace(outcome, fallbacks=(*outcome.fallbacks, fallback))


@dataclass(frozen=True)
class _Driver:
    """One backend on one model; on what is known of the `dense` one, if it is given.

    With `in_turns` linears of a block are compressed one after the other, see `BlockVisit.gather_in_turns`.
    """

    model: nn.Module
    structure: ModelStructure
    backend: Backend
    calibration: TokenWindows | None
    options: WalkOptions
    device: torch.device
    salience: Mapping[str, Salience]
    dense: DenseStatistics | None = None
    in_turns: bool = False

    @property
    def source(self) -> StatisticsSource:
        """Whose inputs the backend is told of."""
        if self.in_turns:
            return "true-sequential"
        return "dense" if self.dense else "sequential"

    def told_of(self, statistics: StatisticsSource | DenseStatistics, names: Collection[str]) -> "_Driver":
        """The same on the inputs of linears that are asked for; those of `names` in the dense model."""
        if statistics == "sequential":
            return self
        if statistics == "true-sequential":
            return replace(self, in_turns=True)
        return self._on_dense_statistics(statistics, names)

    def _on_dense_statistics(
        self, known: DenseStatistics | Literal["dense"], names: Collection[str]
    ) -> "_Driver":
        """The same on what the linears `names` read in the dense model; `known`, or gathered here."""
        if self.calibration is None:  # the backend asks for none by itself
            raise TypeError("statistics of the dense model are of some text")
        record = self.calibration.record
        if known == "dense":
            seen = self.options.notes.step("seen", SeenModel, lambda notes: self._seen(record, names, notes))
            return replace(self, dense=DenseStatistics.noted(seen, record))
        check_windows(known, record)
        for site in self.structure.blocks:  # what is missing is told before anything is changed
            known.of_block(site, names, self.device)
        return replace(self, dense=known)

    def _seen(self, record: CalibrationRecord, names: Collection[str], notes: Notes) -> SeenModel:
        walk = self._walk(self.calibration)
        return gather_dense(walk, record, names, self.options.progress, notes).to_note()

    def for_survey(self, names: Collection[str]) -> "_Driver":
        """The same on what was seen of the dense model already, where that is all that a survey looks at."""
        survey, seen, calibration = self.backend.survey, self.options.seen, self.calibration
        if self.dense or seen is None or survey is None or survey.statistic is not SecondMoments:
            return self
        is_enough = calibration is not None and seen.is_of(calibration.record) and seen.linears >= set(names)
        return replace(self, dense=seen) if is_enough else self

    def survey(self, plan: Plan) -> Surveyed:
        """What is carried out: `plan`, or what a survey makes of it."""
        survey = self.backend.survey
        if survey is None:
            return Surveyed(plan)
        with closing(self._visits(plan, survey.statistic, "surveying blocks")) as visits:
            for visit, budgets in visits:
                survey.see(self._task(visit, budgets, plan, survey.statistic, advance=True))
        return survey.redistribute(plan)

    def compress_(self, surveyed: Surveyed) -> list[LinearOutcome]:
        """Compress every block; the outcomes in the order of the plan."""
        plan = surveyed.plan
        outcomes: dict[str, LinearOutcome] = {}
        statistic = self.backend.statistic
        journal = self.options.journal
        with closing(self._visits(plan, statistic, "compressing blocks")) as visits:
            for visit, budgets in visits:
                self.options.before_change()
                done: Sequence[LinearOutcome] | None = journal.restored_(visit.site) if journal else None
                if done is None:
                    done = self._solve_(visit, budgets, surveyed)
                    done = journal.note(visit.site, done) if journal else done
                outcomes |= {outcome.name: outcome for outcome in done}
                for site in visit.site.linears:
                    if site.name in budgets:
                        keep_codes_(site.module, outcomes[site.name].quantized)
        return [outcomes[budget.name] for budget in plan.budgets]

    def _solve_(
        self, visit: BlockVisit, budgets: dict[str, float], surveyed: Surveyed
    ) -> Sequence[LinearOutcome]:
        """Compress one block, as a whole or linears in turn."""
        plan, statistic = surveyed.plan, self.backend.statistic
        decision = surveyed.decisions.get(visit.site.name)
        # No name holds a task: its statistics must be gone before the next are gathered.
        if not self.in_turns or statistic is None:
            task = partial(self._task, visit, budgets, plan, statistic, advance=False)
            return solve_together_(self.backend, replace(task(), decision=decision))

        def solve_(group: LinearGroup) -> Sequence[LinearOutcome]:
            alone = self._group(group.linears, group.statistic, budgets)
            done = solve_together_(self.backend, BlockTask(visit.site, (alone,), plan.grid, decision))
            return done if group.has_turn else [_without_turn(outcome) for outcome in done]

        with closing(visit.gather_in_turns(statistic, budgets)) as groups:
            return list(chain.from_iterable(map(solve_, groups)))

    def _visits(
        self, plan: Plan, statistic: type[Statistic] | None, what: str
    ) -> Generator[tuple[BlockVisit, dict[str, float]], None, None]:
        """Blocks in order, each with the budgets of those of its linears that are in the plan."""
        values = {budget.name: budget.value for budget in plan.budgets}
        windows = self.calibration if statistic is not None and self.dense is None else None
        with closing(self._walk(windows).visits(self.options.progress, what)) as visits:
            for visit in visits:
                budgets = {site.name: values[site.name] for site in visit.site.linears if site.name in values}
                if budgets:
                    yield visit, budgets

    def _walk(self, windows: TokenWindows | None) -> BlockWalk:
        """A walk on `windows`; on none it runs nothing."""
        return BlockWalk.together(
            self.model,
            self.structure,
            windows.batches(self.options.batch_size) if windows is not None else (),
            device=self.device,
            keep_on=self.options.keep_on,
            may_widen=True,
        )

    def _task(
        self,
        visit: BlockVisit,
        budgets: dict[str, float],
        plan: Plan,
        statistic: type[Statistic] | None,
        *,
        advance: bool,
    ) -> BlockTask:
        if statistic is None:
            alone = [site for site in visit.site.linears if site.name in budgets]
            groups = [self._group((site,), None, budgets) for site in alone]
        else:
            gathered = (
                self.dense.of_block(visit.site, budgets, self.device)
                if self.dense
                else visit.gather(statistic, budgets, advance=advance)
            )
            groups = [self._group(group.linears, group.statistic, budgets) for group in gathered]
        return BlockTask(visit.site, tuple(groups), plan.grid)

    def _group(
        self, linears: Sequence[LinearSite], statistic: Statistic | None, budgets: Mapping[str, float]
    ) -> GroupTask:
        """Linears that read the same input, with what the backend is told of each."""
        tasks = (LinearTask(site, budgets[site.name], self.salience.get(site.name)) for site in linears)
        return GroupTask(tuple(tasks), statistic)
