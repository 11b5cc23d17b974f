"""One cell carried out: the model compressed as it says and measured, as `run` does but for the writing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import fsum
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from owl_compress.compression.contract import CheckpointBackend
from owl_compress.data.windows import TokenWindows
from owl_compress.device import peak_device_bytes
from owl_compress.documents.comparison import Row, Status
from owl_compress.documents.measurements import AgreementRecord, LatencyRecord, PerplexityRecord
from owl_compress.documents.plan import Plan
from owl_compress.documents.result import Result
from owl_compress.evaluation.agreement import DensePredictions, evaluate_against
from owl_compress.evaluation.latency import compare as time_models
from owl_compress.evaluation.perplexity import perplexity
from owl_compress.memory import forget_peak_host_bytes, memory_errors, peak_host_bytes
from owl_compress.models.state import n_parameters
from owl_compress.pipeline.comparison.bench import Bench
from owl_compress.pipeline.comparison.cells import Cell
from owl_compress.pipeline.comparison.fingerprints import evaluated
from owl_compress.pipeline.comparison.measures import Measures
from owl_compress.pipeline.comparison.provenance import provenance
from owl_compress.pipeline.comparison.shared import Shared
from owl_compress.pipeline.execution import compress_
from owl_compress.pipeline.judging import judge
from owl_compress.pipeline.request import Request
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.stored import stored_size


@dataclass
class _Account:
    """Seconds by stage, and the texts that were looked at."""

    seconds: dict[str, float] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + perf_counter() - start

    def looked_at(self, what: str, windows: TokenWindows | None) -> None:
        if windows is not None:
            self.texts[what] = windows.record.token_ids_sha256


@dataclass(frozen=True)
class Workplace:
    """Where cells are carried out: the model, what is shared, and what is measured of every cell."""

    bench: Bench
    shared: Shared
    measures: Measures
    command: str

    def carry_out(self, cell: Cell, fingerprint: str) -> Row:
        """The row of a cell whose request can be meant; the model is dense before and afterwards.

        Raises:
            RequestError: the cell cannot be satisfied.
        """
        if cell.request is None:
            raise TypeError("a cell without a request cannot be carried out")
        account, device = _Account(), cell.request.device
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

    def _dense(self, request: Request, account: _Account) -> dict[str, Any]:
        session = Session(
            request, self.bench.loaded, self.bench.structure, self.bench.identity, None, self.bench.progress
        )
        return self._measured(session, account)

    def _compressed(self, request: Request, account: _Account) -> dict[str, Any]:
        with account.timed("measure"):
            session = self.bench.session(request)
            session.check_storage()
            account.looked_at("calib", session.calibration)
            source, plan = self.shared.planned(session)
            self.shared.tell_dense(session, plan)
        dense = self._predictions(request, account)
        with self.bench.lent():
            with account.timed("compress"):
                judged = judge(session, source, plan, compress_)
                result = judged.told(_compress_(session, judged.plan), session)
            found = self._measured(session, account, dense)
        if isinstance(request.backend, CheckpointBackend):  # whose files were there and counted
            found |= {
                "bytes_on_disk": result.totals.bytes_on_disk,
                "bits_per_weight": result.totals.bits_per_weight,
            }
        return found | _counted(result, judged.plan)

    def _predictions(self, request: Request, account: _Account) -> DensePredictions | None:
        """What the dense model predicts on the first text; None where agreement is not asked for."""
        if not request.recipe.agreement:
            return None
        _, options = evaluated(request.recipe, self.measures)[0]
        with account.timed("evaluate"):
            return self.bench.predictions(options, request)

    def _measured(
        self, session: Session, account: _Account, dense: DensePredictions | None = None
    ) -> dict[str, Any]:
        """What is measured of the model as it is now; agreement with the dense one on the first text."""
        size = stored_size(session)
        found: dict[str, PerplexityRecord] = {}
        agreement: AgreementRecord | None = None
        how: dict[str, Any] = {
            "batch_size": session.recipe.batch_size,
            "device": session.request.device,
            "progress": self.bench.progress,
        }
        with account.timed("evaluate"):
            for name, options in evaluated(session.recipe, self.measures):
                windows = self.bench.evaluation(options)
                account.looked_at(f"data {name}", windows)
                if dense is not None and not found:
                    found[name], agreement = evaluate_against(session.loaded.model, dense, **how)
                else:
                    found[name] = perplexity(session.loaded.model, windows, **how)
        return {
            "perplexity": found,
            "agreement": agreement,
            "latency": self._latency(session, account),
            "bytes_on_disk": size.bytes_on_disk,
            "bits_per_weight": size.bits_per_weight,
            "n_params": n_parameters(session.loaded.model),
        }

    def _latency(self, session: Session, account: _Account) -> LatencyRecord | None:
        shape = self.measures.latency
        if shape is None:
            return None
        with account.timed("timing"):
            (record,) = time_models(
                {session.recipe.model: session.loaded.model},
                shape,
                session.request.device,
                self.bench.progress,
            )
        return record


def _compress_(session: Session, plan: Plan) -> Result:
    """Compress the model in place; a backend that writes a checkpoint does so where nobody keeps it."""
    if not session.writes_by_itself:
        return compress_(session, plan)
    with TemporaryDirectory(prefix="owl-compress-") as folder:
        return compress_(session, plan, Path(folder))


def _counted(result: Result, plan: Plan) -> Mapping[str, Any]:
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
