"""Which statistics a backend asks for, and whether the dense model's can stand for them."""

from typing import get_args

from owl_compress.compression.contract import (
    AnyBackend,
    Backend,
    CheckpointBackend,
    StatisticsChooser,
)
from owl_compress.compression.demands import solves_apart
from owl_compress.documents.provenance import CalibrationRecord, StatisticsSource
from owl_compress.errors import RequestError, nearest
from owl_compress.walk.dense_statistics import DenseStatistics
from owl_compress.walk.input_statistics import SecondMoments, Statistic


def asked_statistics(backend: AnyBackend) -> frozenset[type[Statistic]]:
    """What a backend, or its survey, has to know of the inputs of linears, with the options it has."""
    survey = backend.survey if isinstance(backend, Backend) else None
    asked = (backend.statistic, survey.statistic if survey else None)
    return frozenset(one for one in asked if one is not None)


def usual_statistics(backend: AnyBackend, target: float) -> StatisticsSource:
    """Whose inputs `backend` is told of where nobody says, for a plan of this target.

    Those behind the compressed blocks, unless the backend knows of others that serve it better, or as well.
    """
    return backend.usual_statistics(target) if isinstance(backend, StatisticsChooser) else "sequential"


def check_statistics(backend: AnyBackend, source: StatisticsSource | DenseStatistics) -> None:
    """Refuse statistics that a backend cannot work on.

    Raises:
        RequestError: it walks the model by itself, decides on a block as a whole where linears take turns, or
            needs more than the norms of inputs where they are the dense model's; an unknown source.
    """
    known = get_args(StatisticsSource)
    if isinstance(source, str) and source not in known:
        raise RequestError(f"unknown statistics {source!r}: {nearest(source, known)}")
    if source == "sequential":
        return
    if isinstance(backend, CheckpointBackend):
        told = source if isinstance(source, str) else "dense"
        raise RequestError(
            f"statistics {told}: backend {backend.name!r} gathers its own on the checkpoint: use sequential"
        )
    if source == "true-sequential":
        if not solves_apart(backend):
            raise RequestError(
                f"statistics true-sequential: backend {backend.name!r} decides on a block as a whole: use "
                "sequential"
            )
        return
    for kind in asked_statistics(backend) - {SecondMoments}:
        raise RequestError(
            f"statistics dense: backend {backend.name!r} with these options needs more than the norms of "
            f"inputs ({kind.__name__}), which is too large to keep for all blocks: use sequential"
            + (" or true-sequential" if solves_apart(backend) else "")
        )


def check_windows(statistics: DenseStatistics, calibration: CalibrationRecord) -> None:
    """Refuse statistics of other text than the result will name.

    Raises:
        RequestError: see above.
    """
    if not statistics.is_of(calibration):
        raise RequestError(
            f"the statistics of the dense model are of {_shown(statistics.windows)}, the calibration is "
            f"{_shown(calibration)}: gather them on the same windows"
        )


def _shown(windows: CalibrationRecord) -> str:
    return f"{windows.sequences} sequences from {windows.source} (token ids {windows.token_ids_sha256[:8]})"
