"""One cell carried out: the model compressed as it says and measured, as `run` does but for the writing."""

from dataclasses import dataclass
from math import fsum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from owl_compress.compression.contract import CheckpointBackend
from owl_compress.device import peak_device_bytes
from owl_compress.documents.comparison import Row, Status
from owl_compress.documents.plan import Plan
from owl_compress.documents.result import Result
from owl_compress.memory import forget_peak_host_bytes, memory_errors, peak_host_bytes
from owl_compress.pipeline.comparison.bench import Bench
from owl_compress.pipeline.comparison.cells import Cell
from owl_compress.pipeline.comparison.figures import Account, Figures
from owl_compress.pipeline.comparison.provenance import provenance
from owl_compress.pipeline.comparison.shared import Shared
from owl_compress.pipeline.execution import compress_
from owl_compress.pipeline.judging import judge
from owl_compress.pipeline.request import Request
from owl_compress.pipeline.session import Session


@dataclass(frozen=True)
class Workplace:
    """Where cells are carried out: the model, what cells share, and what is measured of each."""

    bench: Bench
    shared: Shared
    figures: Figures
    command: str

    def carry_out(self, cell: Cell, fingerprint: str) -> Row:
        """The row of a cell whose request can be meant; the model is dense before and afterwards.

        Raises:
            RequestError: the cell cannot be satisfied.
        """
        if cell.request is None:
            raise TypeError("a cell without a request cannot be carried out")
        account, device = Account(), cell.request.device
        forget_peak_host_bytes()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with memory_errors("carrying out a cell"), account.timed("total"):
            done = (
                self._dense(cell.request, account)
                if cell.is_dense
                else self._compressed(cell.request, account)
            )
        return Row(
            **done,
            cell=fingerprint,
            name=cell.name,
            group=cell.group,
            dense=cell.is_dense,
            axes=dict(cell.axes),
            recipe=dict(cell.settings),
            status=Status.DONE,
            seconds=account.seconds,
            peak_memory_bytes=peak_device_bytes(device) or peak_host_bytes(),
            provenance=provenance(self.command, device, account.texts),
        )

    def _dense(self, request: Request, account: Account) -> dict[str, Any]:
        session = self.bench.dense_session(request)
        return self.figures.of(session, account)

    def _compressed(self, request: Request, account: Account) -> dict[str, Any]:
        with account.timed("measure"):
            session = self.bench.session(request)
            session.check_storage()
            account.looked_at("calib", session.calibration)
            source, plan = self.shared.planned(session)
            self.shared.tell_dense(session, plan)
        dense = self.figures.predictions(session, account)
        with self.bench.lent():
            with account.timed("compress"):
                judged = judge(session, source, plan, compress_)
                result = judged.told(_compress_(session, judged.plan), session)
            found = self.figures.of(session, account, dense)
        if isinstance(request.backend, CheckpointBackend):  # whose files were there and counted
            found |= {
                "bytes_on_disk": result.totals.bytes_on_disk,
                "bits_per_weight": result.totals.bits_per_weight,
            }
        return found | _counted(result, judged.plan)


def _compress_(session: Session, plan: Plan) -> Result:
    """Compress the model in place; a backend that writes a checkpoint does so where nobody keeps it."""
    if not session.writes_by_itself:
        return compress_(session, plan)
    with TemporaryDirectory(prefix="owl-compress-") as folder:
        return compress_(session, plan, Path(folder))


def _counted(result: Result, plan: Plan) -> dict[str, Any]:
    """What a result says of budgets."""
    weights: dict[str, list[tuple[float, int]]] = {}
    for row in result.budgets:
        weights.setdefault(row.block, []).append((row.achieved, row.n_weights))
    return {
        "unit": plan.unit,
        "asked": plan.target,
        "achieved": result.totals.achieved,
        "budgets": {
            block: fsum(value * n for value, n in members) / sum(n for _, n in members)
            for block, members in weights.items()
        },
        "notes": (
            *result.notes, *(f"{one.what} at {one.where} ({one.count})" for one in result.fallbacks[:3])
        ),
    }  # fmt: skip
