"""Importance reports of models that are loaded: what a session measures on the way to a plan."""

from dataclasses import replace

from owl_compress.allocators import Target
from owl_compress.allocators.groups import partition
from owl_compress.documents.notes import NO_NOTES, Notes
from owl_compress.documents.report import ImportanceReport
from owl_compress.importance.estimator import measure_with_statistics, outline
from owl_compress.pipeline.session import Session


def measured_report(session: Session, notes: Notes = NO_NOTES) -> ImportanceReport | None:
    """What the request wants measured of the model; None if nothing is. Blocks that are done are noted.

    Raises:
        RequestError: see `owl_compress.importance.estimator.measure`.
    """
    windows, request = session.measuring, session.request
    if windows is None or request.target is None:
        return None
    measured = measure_with_statistics(
        session.loaded.model,
        windows,
        metrics=request.metrics,
        partial=session.recipe.partial,
        device=request.device,
        batch_size=session.recipe.batch_size,
        structure=replace(session.structure, spared=skipped_linears(session, request.target)),
        identity=session.identity,
        progress=session.progress,
        activations=session.recipe.activations,
        notes=notes,
    )
    session.keep(measured.statistics)
    return measured.report


def measured(session: Session, notes: Notes = NO_NOTES) -> ImportanceReport:
    """The same, of a request that wants something measured.

    Raises:
        TypeError: nothing is.
    """
    report = measured_report(session, notes)
    if report is None:
        raise TypeError("the request wants nothing measured")
    return report


def outlined(session: Session) -> ImportanceReport:
    """The same with nothing measured: names and sizes."""
    return outline(session.loaded.model, session.identity, session.structure)


def skipped_linears(session: Session, target: Target) -> frozenset[str]:
    """Linears that the target names to be left alone: nothing has to be known of them."""
    return partition(outlined(session), target).skipped if target.skips else frozenset()
