"""How nearly a model predicts what the dense one does: KL divergence, agreement on the likeliest token."""

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from owl_compress.arguments import checked
from owl_compress.device import given_device
from owl_compress.documents.measurements import AgreementRecord, PerplexityRecord
from owl_compress.errors import RequestError
from owl_compress.evaluation.perplexity import perplexity, placed
from owl_compress.evaluation.predictions import (
    DensePredictions,
    Scored,
    head_of,
    run_watched,
)
from owl_compress.memory import memory_errors
from owl_compress.models.limits import check_vocabulary
from owl_compress.models.state import evaluation_mode, rest_on_device
from owl_compress.models.structure import BlockSite, find_structure
from owl_compress.progress import SILENT, Progress
from owl_compress.walk.outputs import NAN_PREDICTED, divergence

logger = logging.getLogger(__name__)


@checked
def agreement(
    model: Annotated[Any, nn.Module],
    dense: DensePredictions,
    *,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    progress: Progress = SILENT,
) -> AgreementRecord:
    """How nearly `model` predicts what the dense model does, on the windows that that was run on.

    At no time are there more logits of either than of some hundred positions.

    Raises:
        RequestError: another vocabulary, NaN among the predictions, or memory is short.
    """
    with _comparing(model, dense, given_device(device)) as comparison:
        run_watched(model, dense.windows, comparison, batch_size, progress, "comparing with the dense model")
        return comparison.record()


def evaluate_against(
    model: Any,
    dense: DensePredictions,
    *,
    batch_size: int = 1,
    device: torch.device | None = None,
    progress: Progress = SILENT,
) -> tuple[PerplexityRecord, AgreementRecord]:
    """`perplexity` on the windows of `dense`, and `agreement` with it, in one pass over them.

    Raises:
        RequestError: see both.
    """
    with _comparing(model, dense, device) as comparison:
        record = perplexity(
            model, dense.windows, batch_size=batch_size, device=device, progress=progress, onlooker=comparison
        )
        return record, comparison.record()


class _Comparison:
    """Looks on while another model runs, and holds it against the dense one, batch by batch."""

    def __init__(self, model: Any, dense: DensePredictions) -> None:
        self._blocks = find_structure(model).blocks
        self._dense = dense
        self._own_head = head_of(model, self._blocks, dense.windows)
        self._dense_head = dense.head_beside(model, self._own_head)
        self._scored = Scored(dense.windows)
        self._expected = iter(dense.states)
        self._divergence, self._n_equal, self._n_positions = 0.0, 0, 0

    def blocks_of(self, model: Any) -> Sequence[BlockSite]:  # noqa: ARG002 - they are found already
        """Its blocks."""
        return self._blocks

    def look(self, states: Tensor) -> None:
        """Compare what is scored of a batch."""
        found = self._scored.of(states)
        own = torch.cat(found)
        expected = torch.cat([next(self._expected) for _ in found])
        size = min(self._own_head.chunk_size, self._dense_head.chunk_size)
        with evaluation_mode(self._dense.model), torch.no_grad():
            for start in range(0, len(own), size):
                self._compare(expected[start : start + size], own[start : start + size])
        if math.isnan(self._divergence):
            raise RequestError(NAN_PREDICTED)

    def _compare(self, expected: Tensor, own: Tensor) -> None:
        """States [positions, hidden] of the dense model, and of this one."""
        theirs = self._dense_head.log_probabilities(expected)
        ours = self._own_head.log_probabilities(own).to(theirs.device)
        self._n_equal += int((theirs.argmax(dim=1) == ours.argmax(dim=1)).sum())
        self._divergence += float(divergence(theirs, ours).sum(dtype=torch.float64))
        self._n_positions += len(own)

    def record(self) -> AgreementRecord:
        """What all batches came to."""
        windows = self._dense.windows.record
        return AgreementRecord(
            kl=_finite(self._divergence / self._n_positions),
            top1=self._n_equal / self._n_positions,
            positions=self._n_positions,
            against=self._dense.name,
            data=windows.source,
            windows=windows.sequences,
            seq_len=windows.seq_len,
            bos=windows.bos,
        )


@contextmanager
def _comparing(model: Any, dense: DensePredictions, device: torch.device | None) -> Iterator[_Comparison]:
    """Who looks on while `model` runs; it is on its device inside, and so is the head of the dense one."""
    check_vocabulary(model, dense.windows.ids)
    blocks = find_structure(dense.model).blocks
    with (
        memory_errors("evaluating"),
        placed(model, device) as place,
        rest_on_device(dense.model, blocks, place),
    ):
        yield _Comparison(model, dense)


def _finite(mean: float) -> float:
    """A divergence without end as the largest number, with a warning; rounding below zero is none."""
    largest = sys.float_info.max
    if mean <= largest:
        return max(mean, 0.0)
    logger.warning(
        "the divergence has no end (a token that is predicted is ruled out): reported as %g", largest
    )
    return largest
