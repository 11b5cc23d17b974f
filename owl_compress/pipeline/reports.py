"""Importance reports of models that are loaded: what a session measures on the way to a plan."""

from collections.abc import Collection
from dataclasses import replace

from owl_compress.allocators import Target
from owl_compress.allocators.groups import partition
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.journal import MeasuredModel
from owl_compress.documents.notes import NO_NOTES, Notes
from owl_compress.documents.report import ImportanceReport
from owl_compress.importance.estimator import Measured, measure_with_statistics, outline
from owl_compress.models.state import parameter_device
from owl_compress.pipeline.session import Session
from owl_compress.walk.blocks import BlockWalk
from owl_compress.walk.dense_statistics import DenseStatistics, gather_dense


def measured_report(session: Session) -> ImportanceReport | None:
    """What the request wants measured of the model; None if nothing is.

    Raises:
        RequestError: see `owl_compress.importance.estimator.measure`.
    """
    if session.measuring is None or session.request.target is None:
        return None
    measured = _measured(session, session.measuring, session.request.target, NO_NOTES)
    session.keep(measured.statistics)
    return measured.report


def measured_and_seen(session: Session, notes: Notes) -> MeasuredModel:
    """The same, with what was seen on the way, of a request that wants something measured. Blocks are noted.

    Raises:
        TypeError: nothing is.
    """
    if session.measuring is None or session.request.target is None:
        raise TypeError("the request wants nothing measured")
    measured = _measured(session, session.measuring, session.request.target, notes)
    return MeasuredModel(report=measured.report, seen=measured.statistics.to_note())


def _measured(session: Session, windows: TokenWindows, target: Target, notes: Notes) -> Measured:
    request, recipe = session.request, session.recipe
    return measure_with_statistics(
        session.loaded.model,
        windows,
        metrics=request.metrics,
        partial=recipe.partial,
        device=request.device,
        batch_size=recipe.batch_size,
        structure=replace(session.structure, spared=skipped_linears(session, target)),
        identity=session.identity,
        progress=session.progress,
        activations=recipe.activations,
        notes=notes,
    )


def dense_statistics(session: Session, names: Collection[str]) -> DenseStatistics:
    """What the linears `names` of the dense model read of the calibration windows, by this process alone.

    Raises:
        TypeError: there are no windows.
        RequestError: see `owl_compress.walk.dense_statistics.gather_dense`.
    """
    model, calibration = session.loaded.model, session.calibration
    if calibration is None:
        raise TypeError("statistics of the dense model are of some text")
    walk = BlockWalk(
        model,
        session.structure,
        calibration.batches(session.recipe.batch_size),
        device=session.request.device or parameter_device(model),
        may_widen=True,
    )
    return gather_dense(walk, calibration.record, names, session.progress)


def outlined(session: Session) -> ImportanceReport:
    """The same with nothing measured: names and sizes."""
    return outline(session.loaded.model, session.identity, session.structure)


def skipped_linears(session: Session, target: Target) -> frozenset[str]:
    """Linears that the target names to be left alone: nothing has to be known of them."""
    return partition(outlined(session), target).skipped if target.skips else frozenset()
