"""What several cells need of the same dense model: measured by the first of them, kept for the others.

Reports and profiles lie in files, so that other processes and later runs find them; sums over inputs, which
are large, are held in memory.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from owl_compress.documents.plan import Plan
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.errors import RequestError
from owl_compress.importance.estimator import measure_with_statistics
from owl_compress.pipeline.comparison.bench import Bench
from owl_compress.pipeline.comparison.claims import Claims
from owl_compress.pipeline.dividing import divide
from owl_compress.pipeline.execution import make_plan
from owl_compress.pipeline.feasibility import check_request
from owl_compress.pipeline.profiling import check_given, profile_of
from owl_compress.pipeline.reports import dense_statistics, skipped_linears
from owl_compress.pipeline.session import Session
from owl_compress.walk.dense_statistics import DenseStatistics

logger = logging.getLogger(__name__)

Source = ImportanceReport | SensitivityProfile
S = TypeVar("S", ImportanceReport, SensitivityProfile)


@dataclass
class Shared:
    """What was measured of the model of `bench` so far.

    Attributes:
        bench: the model.
        folder: for the files.
        claims: of what one process measures and the others wait for.
        metrics: that the cells of this model rank by, all of them measured in one go.
    """

    bench: Bench
    folder: Path
    claims: Claims
    metrics: tuple[str, ...]
    _statistics: dict[str, DenseStatistics] = field(default_factory=dict)

    def planned(self, session: Session) -> tuple[Source | None, Plan]:
        """As `make_plan`, with a report or profile that is there already, or is kept from now on.

        Raises:
            RequestError: see `make_plan`.
        """
        request = session.request
        is_made = request.plan is not None or request.candidates
        if is_made or not (session.measures or request.reads_damage):
            return make_plan(session)
        check_request(session)
        if request.reads_damage:
            source: Source = self._profile(session)
        elif session.measuring is None:
            return make_plan(session)
        else:
            source = self._report(session)
        return source, divide(session, source)

    def tell_dense(self, session: Session, plan: Plan) -> None:
        """Have the session know what the linears of the dense model read, gathered if its backend asks.

        Raises:
            RequestError: a linear that no token reached.
        """
        calibration = session.calibration
        if calibration is None:
            return
        record, names = calibration.record, {budget.name for budget in plan.budgets}
        known = self._statistics.get(record.token_ids_sha256)
        if session.asks_for_dense and (known is None or not names <= known.linears):
            known = self._statistics[record.token_ids_sha256] = dense_statistics(session, names)
        if known is not None:
            session.keep(known)

    def _report(self, session: Session) -> ImportanceReport:
        windows, target = session.measuring, session.request.target
        if windows is None or target is None:
            raise TypeError("importance is measured on windows, for a target")
        spared = skipped_linears(session, target)
        recipe = session.recipe
        name = self.bench.name_of(
            windows.record.model_dump_json(), sorted(spared), recipe.batch_size, session.request.device.type
        )
        with self._alone("report", name) as path:
            found = _read(path, ImportanceReport)
            if found is not None and set(self.metrics) <= _metrics_of(found):
                return found
            measured = measure_with_statistics(
                session.loaded.model,
                windows,
                metrics=self.metrics,
                partial=recipe.partial,
                device=session.request.device,
                batch_size=recipe.batch_size,
                structure=replace(session.structure, spared=spared),
                identity=session.identity,
                progress=session.progress,
            )
            self._statistics[windows.record.token_ids_sha256] = measured.statistics
            measured.report.write(path)
            return measured.report

    def _profile(self, session: Session) -> SensitivityProfile:
        request, recipe = session.request, session.recipe
        if request.profile is not None or session.profiled_windows is None:
            return profile_of(session)
        target = request.target
        name = self.bench.name_of(
            session.profiled_windows.record.model_dump_json(),
            self.bench.texts.digest(session.text_of_damage),
            request.backend.name,
            asdict(request.backend),
            request.profiling,
            sorted(skipped_linears(session, target)) if target else (),
            sorted(target.pins) if target else (),
            recipe.seed,
            recipe.batch_size,
            request.device.type,
        )
        with self._alone("sensitivity", name) as path:
            known = _read(path, SensitivityProfile)
            if known is not None:
                check_given(session, known)
                return known
            found = profile_of(session)
            found.write(path)
            return found

    @contextmanager
    def _alone(self, kind: str, name: str) -> Iterator[Path]:
        """The path of a file that no other process makes meanwhile."""
        with self.claims.claimed(name, waits=True):
            yield self.folder / f"{kind}-{name}.json"


def _read(path: Path, kind: type[S]) -> S | None:
    """What another cell left; None where there is nothing, or something damaged, which is measured again."""
    try:
        return kind.read(path) if path.exists() else None
    except RequestError as error:
        logger.warning("%s: it is measured again", error)
        return None


def _metrics_of(report: ImportanceReport) -> set[str]:
    return {name for block in report.blocks for name in block.metrics}
