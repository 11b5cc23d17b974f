"""The account of one compression: from the outcomes of a backend to the result."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import fsum
from time import perf_counter

import torch
from pydantic import JsonValue

from owl_compress.compression.contract import AnyBackend
from owl_compress.compression.tasks import LinearOutcome
from owl_compress.data.windows import TokenWindows
from owl_compress.device import peak_device_bytes
from owl_compress.documents.coverage import Coverage
from owl_compress.documents.plan import Plan
from owl_compress.documents.provenance import ModelIdentity
from owl_compress.documents.result import LinearResult, MethodRecord, Result, Totals
from owl_compress.documents.units import Unit
from owl_compress.documents.versions import versions
from owl_compress.memory import peak_host_bytes

_CHANCE = 1e-3
"""Share of a linear's weights that may be zero without a word."""


@dataclass(frozen=True)
class Stored:
    """How much there is of the model; `bytes_on_disk` is None while it is only in memory."""

    bits_per_weight: float
    bytes_on_disk: int | None
    n_params_before: int
    n_params_after: int


@dataclass(frozen=True)
class Account:
    """What is known of a compression before it starts; `start` is a reading of `perf_counter`."""

    plan: Plan
    identity: ModelIdentity
    notes: tuple[str, ...]
    calibration: TokenWindows | None
    device: torch.device
    start: float
    coverage: Coverage | None = None

    def result(
        self,
        method: MethodRecord,
        error_measure: str,
        asked: Plan,
        outcomes: Sequence[LinearOutcome],
        stored: Stored,
    ) -> Result:
        """The result; `asked` holds the budgets that each of the `outcomes`, in its order, is set against."""
        rows = tuple(
            LinearResult(
                name=budget.name,
                block=budget.block,
                unit=asked.unit,
                asked=budget.value,
                achieved=outcome.achieved,
                n_weights=budget.n_weights,
                relative_error=outcome.relative_error,
                seconds=outcome.seconds,
            )
            for budget, outcome in zip(asked.budgets, outcomes, strict=True)
        )
        n_weights = sum(row.n_weights for row in rows)
        calibration = self.calibration.record if self.calibration else None
        return Result(
            model=self.identity,
            backend=method,
            error_measure=error_measure,
            totals=Totals(
                asked=self.plan.achieved,
                achieved=fsum(row.achieved * row.n_weights for row in rows) / n_weights,
                n_weights=n_weights,
                **asdict(stored),
            ),
            fallbacks=tuple(fallback for outcome in outcomes for fallback in outcome.fallbacks),
            notes=(*self.notes, *_notes_on_counts(rows)),
            coverage=self.coverage,
            calibration=calibration,
            seed=calibration.seed if calibration else 0,
            wall_seconds=perf_counter() - self.start,
            peak_device_bytes=peak_device_bytes(self.device),
            peak_host_bytes=peak_host_bytes(),
            versions=versions(),
            report=self.plan.report,
            plan=self.plan.fingerprint,
            budgets=rows,
        )


def _notes_on_counts(rows: Sequence[LinearResult]) -> list[str]:
    """What counts say that nobody asked for: linears that were sparser already, or keep nothing."""
    if rows[0].unit is not Unit.DENSITY:
        return []
    notes = []
    n_weights = sum(row.n_weights for row in rows)
    # A weight or two may be zero by chance, and each linear loses less than one to rounding.
    sparser = [
        row for row in rows if (row.asked - row.achieved) * row.n_weights > 1 + _CHANCE * row.n_weights
    ]
    if sparser:
        asked = fsum(row.asked * row.n_weights for row in rows) / n_weights
        achieved = fsum(row.achieved * row.n_weights for row in rows) / n_weights
        notes.append(
            f"sparser than asked: {len(sparser)} linears, the first {sparser[0].name}, had more zeros "
            f"already; a density of {asked:.4g} was asked for, {achieved:.4g} is what is left"
        )
    emptied = [row for row in rows if row.achieved == 0]
    if emptied:
        notes.append(f"linears that keep no weight at all: {len(emptied)}, the first {emptied[0].name}")
    return notes


def method_record(backend: AnyBackend) -> MethodRecord:
    """The backend with all its options."""
    return MethodRecord(name=backend.name, parameters=asdict(backend))


def settled_options(backend: AnyBackend) -> dict[str, JsonValue]:
    """Its options, but for those that it leaves open until it sees the model."""
    return {name: value for name, value in method_record(backend).parameters.items() if value is not None}
