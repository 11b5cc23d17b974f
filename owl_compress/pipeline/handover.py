"""Backends that write a checkpoint of their own: a dense folder goes in, a compressed one comes out."""

import shutil
from pathlib import Path
from time import perf_counter

import torch

from owl_compress.checkpoints.leftovers import name_all
from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.checkpoints.tensors import bytes_on_disk
from owl_compress.compression.account import Account, Stored, method_record
from owl_compress.compression.contract import CheckpointBackend
from owl_compress.compression.demands import check_unit
from owl_compress.compression.tasks import LinearOutcome
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import Plan
from owl_compress.documents.result import Result
from owl_compress.errors import RequestError
from owl_compress.forms.codes import keep_codes_
from owl_compress.models.coverage import coverage_of
from owl_compress.models.state import n_parameters
from owl_compress.pipeline.session import Session


def compress_checkpoint_(session: Session, backend: CheckpointBackend, plan: Plan, folder: Path) -> Result:
    """Have `backend` write its checkpoint of the session's model into `folder`.

    The model in memory becomes what the saved codes stand for, so that it can be evaluated like any other.

    Raises:
        RequestError: a plan of another model or unit, no calibration text, or what the backend refuses.
    """
    start = perf_counter()
    loaded, structure, device = session.loaded, session.structure, session.request.device
    plan.check_fits(structure.linear_sizes)
    check_unit(plan, backend)
    calibration = session.calibration
    if calibration is None:
        raise RequestError(f"backend {backend.name!r} needs calibration text: give --calib")
    backend.check_ready(plan)
    notes, coverage = (*structure.notes, *name_all(loaded.leftovers)), coverage_of(structure)
    account = Account(plan, session.identity, notes, calibration, device, start, coverage)
    n_params = n_parameters(loaded.model)
    outcomes = _carry_out(loaded, plan, backend, calibration, folder, device)
    session.spend()
    sites = {linear.name: linear for linear in structure.linears}
    for outcome in outcomes:
        site, codes = sites[outcome.name], outcome.quantized
        if codes is not None:
            with torch.no_grad():
                site.weight.copy_(codes.dequantised())
            keep_codes_(site.module, codes)
    on_disk = bytes_on_disk(folder)
    stored = Stored(8 * on_disk / n_params, on_disk, n_params, n_params)
    return account.result(method_record(backend), backend.error_measure, plan, outcomes, stored)


def _carry_out(
    loaded: LoadedModel,
    plan: Plan,
    backend: CheckpointBackend,
    calibration: TokenWindows,
    folder: Path,
    device: torch.device,
) -> list[LinearOutcome]:
    """The outcomes in the order of the plan; the dense checkpoint lies inside `folder` meanwhile."""
    dense = folder / ".dense"
    dense.mkdir()
    try:
        save_checkpoint(loaded.model, loaded.tokenizer, dense)
        done = backend.compress_checkpoint(dense, plan, calibration, device, folder)
        outcomes = {outcome.name: outcome for outcome in done}
    finally:
        shutil.rmtree(dense, ignore_errors=True)
    return [outcomes[budget.name] for budget in plan.budgets]
