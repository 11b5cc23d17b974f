"""What the model of a session is worth, before and after it is compressed."""

from dataclasses import dataclass
from typing import Any

from owl_compress.documents.measurements import Evaluation, PerplexityRecord
from owl_compress.evaluation import agreement, predictions
from owl_compress.evaluation.perplexity import perplexity
from owl_compress.evaluation.predictions import DensePredictions
from owl_compress.pipeline.resuming import NOTHING_KEPT, Kept
from owl_compress.pipeline.session import Session


@dataclass(frozen=True)
class DenseQuality:
    """Perplexity of the dense model, and what it predicts where agreement with it is asked for."""

    perplexity: PerplexityRecord
    predictions: DensePredictions | None = None


def evaluate(session: Session) -> PerplexityRecord:
    """Perplexity of the model as it is now, on the request's evaluation text.

    Raises:
        RequestError: the request names no such text.
    """
    return perplexity(
        session.loaded.model,
        session.held_out_windows,
        activations=session.recipe.activations,
        **_how(session),
    )


def evaluate_dense(session: Session, kept: Kept = NOTHING_KEPT) -> DenseQuality:
    """The model while it is dense, on the request's evaluation text; its perplexity is `kept`.

    Raises:
        RequestError: the request names no such text, or its predictions cannot be held against others.
    """
    if not session.recipe.agreement:
        return DenseQuality(kept.notes.once("dense", PerplexityRecord, lambda: evaluate(session)))
    model, windows = session.loaded.model, session.held_out_windows
    return DenseQuality(*predictions.evaluate_dense(model, windows, session.loaded.source, **_how(session)))


def evaluation_beside(session: Session, dense: DenseQuality) -> Evaluation:
    """The model as it is now beside the dense one.

    Raises:
        RequestError: see `owl_compress.evaluation.agreement.agreement`.
    """
    if dense.predictions is None:
        return Evaluation(dense=dense.perplexity, compressed=evaluate(session))
    compressed, agreed = agreement.evaluate_against(session.loaded.model, dense.predictions, **_how(session))
    return Evaluation(dense=dense.perplexity, compressed=compressed, agreement=agreed)


def _how(session: Session) -> dict[str, Any]:
    """How the model is run."""
    return {
        "batch_size": session.recipe.batch_size,
        "device": session.request.device,
        "progress": session.progress,
    }
