"""The driver: walks the blocks of a model and has a backend compress each one, exactly to the plan."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass
from math import fsum
from time import perf_counter

import torch
from torch import nn

from owl_compress.backend import AnyBackend, Backend, BlockTask, GroupTask, LinearOutcome, LinearTask
from owl_compress.calibration import TokenWindows
from owl_compress.device import peak_device_bytes, peak_host_bytes
from owl_compress.errors import RequestError
from owl_compress.estimator import identify
from owl_compress.families import LinearSite, ModelStructure, find_structure
from owl_compress.model_state import n_parameters, parameter_device
from owl_compress.plan import Plan
from owl_compress.progress import SILENT, Progress
from owl_compress.quantized import keep_codes_, stored_bits
from owl_compress.report import ModelIdentity
from owl_compress.result import LinearResult, MethodRecord, Result, Totals
from owl_compress.versions import versions
from owl_compress.walk import BlockVisit, BlockWalk


@dataclass(frozen=True)
class WalkOptions:
    """How the walk runs: where, how many sequences at a time, and who is told about it."""

    device: torch.device | None = None
    batch_size: int = 1
    keep_on: torch.device | None = None
    progress: Progress = SILENT


def compress_with_(
    model: nn.Module,
    plan: Plan,
    backend: Backend,
    name: str,
    calibration: TokenWindows | None,
    options: WalkOptions | None = None,
    identity: ModelIdentity | None = None,
) -> Result:
    """Compress `model` in place, each block on the outputs of the compressed blocks before it.

    Args:
        model: a causal language model on the host or on a device; its weights stay there.
        plan: budgets in the unit of the backend, for exactly this model's linears.
        backend: see `owl_compress.backend.Backend`.
        name: the backend's name, for the record.
        calibration: token windows, shape [sequences, seq_len]; not needed by backends without statistics.
        options: how the walk runs.
        identity: what the result says about the model; by default read from its config.

    Raises:
        RequestError: plan of another model or unit, calibration missing, NaN or Inf in the activations.
    """
    start = perf_counter()
    structure = find_structure(model)
    options = options or WalkOptions()
    device = options.device or parameter_device(model)
    _check_request(plan, backend, name, calibration, structure)
    identity = identity or identify(model, structure)
    n_params_before = n_parameters(model)
    driver = _Driver(model, structure, backend, calibration, options, device)
    executed = driver.survey(plan)
    outcomes = driver.compress_(executed)
    rows = tuple(result_row(executed, outcome, index) for index, outcome in enumerate(outcomes))
    n_weights = sum(row.n_weights for row in rows)
    return Result(
        model=identity,
        backend=method_record(name, backend),
        error_measure=backend.error_measure,
        totals=Totals(
            asked=plan.achieved,
            achieved=fsum(row.achieved * row.n_weights for row in rows) / n_weights,
            n_weights=n_weights,
            bits_per_weight=stored_bits(model) / n_parameters(model),
            bytes_on_disk=None,
            n_params_before=n_params_before,
            n_params_after=n_parameters(model),
        ),
        fallbacks=tuple(fallback for outcome in outcomes for fallback in outcome.fallbacks),
        notes=structure.notes,
        calibration=calibration.record if calibration else None,
        seed=calibration.record.seed if calibration else 0,
        wall_seconds=perf_counter() - start,
        peak_device_bytes=peak_device_bytes(device),
        peak_host_bytes=peak_host_bytes(),
        versions=versions(),
        report=plan.report,
        plan=plan.fingerprint,
        budgets=rows,
    )


def _check_request(
    plan: Plan, backend: Backend, name: str, calibration: TokenWindows | None, structure: ModelStructure
) -> None:
    plan.check_fits(structure.linear_sizes)
    if plan.unit is not backend.unit:
        raise RequestError(
            f"backend {name!r} carries out budgets in {backend.unit}, the plan is in {plan.unit}: "
            "choose another backend"
        )
    if backend.statistic is not None and calibration is None:
        raise RequestError(f"backend {name!r} needs calibration text: give --calib")
    if plan.grid is not None and backend.survey is not None:
        raise RequestError(
            f"backend {name!r} is to compare weights across the model, which leaves the grid of the plan: "
            "use --scope row or linear, or a plan without a grid"
        )


@dataclass(frozen=True)
class _Driver:
    """One backend on one model."""

    model: nn.Module
    structure: ModelStructure
    backend: Backend
    calibration: TokenWindows | None
    options: WalkOptions
    device: torch.device

    def survey(self, plan: Plan) -> Plan:
        """The plan to carry out: `plan`, or what a survey of the dense model makes of it."""
        survey = self.backend.survey
        if survey is None:
            return plan
        with closing(self._visits(plan, "surveying blocks")) as visits:
            for visit, budgets in visits:
                survey.see(self._task(visit, budgets, plan, advance=True))
        return survey.redistribute(plan)

    def compress_(self, plan: Plan) -> list[LinearOutcome]:
        """Compress every block; the outcomes in the order of the plan."""
        outcomes: dict[str, LinearOutcome] = {}
        with closing(self._visits(plan, "compressing blocks")) as visits:
            for visit, budgets in visits:
                # No name holds the task: its statistics must be gone before the next block's are gathered.
                done = self.backend.compress_block_(self._task(visit, budgets, plan, advance=False))
                outcomes |= {outcome.name: outcome for outcome in done}
                for site in visit.site.linears:
                    if site.name in budgets:
                        keep_codes_(site.module, outcomes[site.name].quantized)
        return [outcomes[budget.name] for budget in plan.budgets]

    def _visits(self, plan: Plan, what: str) -> Generator[tuple[BlockVisit, dict[str, float]], None, None]:
        """Blocks in order, each with the budgets of those of its linears that are in the plan."""
        values = {budget.name: budget.value for budget in plan.budgets}
        windows = self.calibration if self.backend.statistic is not None else None
        walk = BlockWalk(
            self.model,
            self.structure,
            windows.batches(self.options.batch_size) if windows is not None else (),
            device=self.device,
            keep_on=self.options.keep_on,
        )
        with closing(walk.visits(self.options.progress, what)) as visits:
            for visit in visits:
                budgets = {site.name: values[site.name] for site in visit.site.linears if site.name in values}
                if budgets:
                    yield visit, budgets

    def _task(self, visit: BlockVisit, budgets: dict[str, float], plan: Plan, *, advance: bool) -> BlockTask:
        def task(site: LinearSite) -> LinearTask:
            return LinearTask(site, budgets[site.name])

        if self.backend.statistic is None:
            groups = [GroupTask((task(site),), None) for site in visit.site.linears if site.name in budgets]
        else:
            gathered = visit.gather(self.backend.statistic, budgets, advance=advance)
            groups = [GroupTask(tuple(map(task, group.linears)), group.statistic) for group in gathered]
        return BlockTask(visit.site, tuple(groups), plan.grid)


def method_record(name: str, backend: AnyBackend) -> MethodRecord:
    """The backend with all its options."""
    return MethodRecord(name=name, parameters=asdict(backend))  # type: ignore[call-overload]


def result_row(plan: Plan, outcome: LinearOutcome, index: int) -> LinearResult:
    """The row of one linear, `index` counting the budgets of the plan."""
    budget = plan.budgets[index]
    return LinearResult(
        name=budget.name,
        block=budget.block,
        unit=plan.unit,
        asked=budget.value,
        achieved=outcome.achieved,
        n_weights=budget.n_weights,
        relative_error=outcome.relative_error,
        seconds=outcome.seconds,
    )
