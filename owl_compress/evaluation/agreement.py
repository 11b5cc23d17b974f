"""How nearly a model predicts what the dense model does: KL divergence and agreement on the likeliest token.

Both are exact, over the whole vocabulary and at every scored position, and cost no memory to speak of: of the
dense model hidden states are kept, from which its logits are computed anew, a piece at a time.
"""

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from owl_compress.arguments import checked
from owl_compress.data.windows import TokenWindows
from owl_compress.device import given_device
from owl_compress.documents.measurements import AgreementRecord, PerplexityRecord
from owl_compress.errors import RequestError
from owl_compress.evaluation.perplexity import perplexity, placed
from owl_compress.memory import memory_errors
from owl_compress.models.limits import check_vocabulary
from owl_compress.models.state import evaluation_mode, rest_on_device
from owl_compress.models.structure import BlockSite, find_structure
from owl_compress.progress import SILENT, Progress
from owl_compress.walk.capture import states_behind
from owl_compress.walk.outputs import Head, divergence

logger = logging.getLogger(__name__)

_REMEDY = "what it predicts cannot be held against another model; leave agreement out"
_NAN = (
    "the predictions hold NaN: the model's weights are broken, or overflow its data type; check the "
    "checkpoint, or use --dtype float32"
)
_PROBED = 16
"""Positions by which a head is known again."""
_LOOKED_AT = 64
"""Tokens on which it is tried whether predictions follow from the states behind the last block."""
_TOLERANCE = 1e-2
"""Of the largest logarithm: rounding, on whatever device."""


class DensePredictions:
    """What a dense model predicts at every scored position of some windows, to hold other models against.

    It is kept as the hidden states behind the last block, on the host: tokens x hidden size values, of which
    the dense model's own final norm and head make logits again. The model's blocks may be compressed in the
    meantime; what lies behind them has to stay as it is.

    Args:
        model: the dense model, on the device where it was run.
        name: what records call it.
        windows: that it was run on.
        states: behind the last block at the scored positions, [positions, hidden] for each window.
        head: what it makes of them.
    """

    def __init__(
        self, model: Any, name: str, windows: TokenWindows, states: Sequence[Tensor], head: Head
    ) -> None:
        self.model = model
        self.name = name
        self.windows = windows
        self.states = states
        self._head = head
        self._probe = self._probed(head)

    def head_beside(self, model: Any, own: Head) -> Head:
        """The dense model's head, where `model` with its `own` head is held against it.

        Raises:
            RequestError: it does no longer what it did, or has another vocabulary.
        """
        head = own if model is self.model else self._head
        if own.vocabulary != head.vocabulary:
            raise RequestError(
                f"{self.name} predicts {head.vocabulary} tokens and the model beside it {own.vocabulary}: "
                "only models with the same vocabulary can be held against each other"
            )
        if not _alike(self._probed(head), self._probe):
            raise RequestError(
                f"what {self.name} does behind its last block has changed since it was run: load the dense "
                "model again"
            )
        return head

    def _probed(self, head: Head) -> Tensor:
        """Log-probabilities at some positions, [positions, vocabulary], on the host."""
        some = self.states[0][: min(_PROBED, head.chunk_size)]
        with evaluation_mode(self.model), torch.no_grad():
            return head.log_probabilities(some).cpu()


@checked
def dense_predictions(
    model: Annotated[Any, nn.Module],
    windows: TokenWindows,
    *,
    name: str | None = None,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    progress: Progress = SILENT,
) -> DensePredictions:
    """What the dense `model` predicts on `windows`, for `agreement` of a compressed one with it.

        windows = hold_out(loaded, "wikitext2")
        dense = dense_predictions(loaded.model, windows)
        ...                                    # compress loaded.model in place
        agreement(loaded.model, dense).kl

    Raises:
        RequestError: what it predicts does not follow from its blocks, the ids are not its own, or memory is
            short.
    """
    with _recording(model, windows, name, given_device(device)) as recorder:
        _run(model, windows, recorder, batch_size, progress, "running the dense model")
        return recorder.predictions()


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
        _run(model, dense.windows, comparison, batch_size, progress, "comparing with the dense model")
        return comparison.record()


def evaluate_dense(
    model: Any,
    windows: TokenWindows,
    name: str | None = None,
    *,
    batch_size: int = 1,
    device: torch.device | None = None,
    progress: Progress = SILENT,
) -> tuple[PerplexityRecord, DensePredictions]:
    """`perplexity` and `dense_predictions` in one pass over the windows.

    Raises:
        RequestError: see both.
    """
    with _recording(model, windows, name, device) as recorder:
        record = perplexity(
            model, windows, batch_size=batch_size, device=device, progress=progress, onlooker=recorder
        )
        return record, recorder.predictions()


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


class _Scored:
    """Picks the states that scored tokens are predicted from out of batches, window by window."""

    def __init__(self, windows: TokenWindows) -> None:
        self._ranges = iter(windows.scoring.ranges.tolist())

    def of(self, states: Tensor) -> list[Tensor]:
        """[batch, seq_len, hidden] of the next batch -> [scored, hidden] for each of its windows."""
        # The token at a place is predicted at the place before it.
        ranges = [next(self._ranges) for _ in states]
        return [window[first - 1 : stop - 1] for window, (first, stop) in zip(states, ranges, strict=True)]


class _Recorder:
    """Looks on while the dense model runs, and keeps its states on the host."""

    def __init__(self, model: Any, windows: TokenWindows, name: str | None) -> None:
        self._model, self._windows = model, windows
        self._name = name or str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
        self._blocks = find_structure(model).blocks
        self._head = _head_of(model, self._blocks, windows)
        self._scored = _Scored(windows)
        self._states: list[Tensor] = []

    def blocks_of(self, model: Any) -> Sequence[BlockSite]:  # noqa: ARG002 - they are found already
        """Its blocks."""
        return self._blocks

    def look(self, states: Tensor) -> None:
        """Keep what is scored of a batch."""
        self._states += [one.to("cpu", copy=True) for one in self._scored.of(states)]

    def predictions(self) -> DensePredictions:
        """What was kept."""
        return DensePredictions(self._model, self._name, self._windows, self._states, self._head)


class _Comparison:
    """Looks on while another model runs, and holds it against the dense one, batch by batch."""

    def __init__(self, model: Any, dense: DensePredictions) -> None:
        self._blocks = find_structure(model).blocks
        self._dense = dense
        self._own_head = _head_of(model, self._blocks, dense.windows)
        self._dense_head = dense.head_beside(model, self._own_head)
        self._scored = _Scored(dense.windows)
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
            raise RequestError(_NAN)

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
def _recording(
    model: Any, windows: TokenWindows, name: str | None, device: torch.device | None
) -> Iterator[_Recorder]:
    """Who looks on while the dense model runs; it is on its device inside."""
    check_vocabulary(model, windows.ids)
    with memory_errors("evaluating"), placed(model, device):
        yield _Recorder(model, windows, name)


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


def _run(
    model: Any,
    windows: TokenWindows,
    onlooker: _Recorder | _Comparison,
    batch_size: int,
    progress: Progress,
    what: str,
) -> None:
    """Run `model` as far as its last block, which no logits come from."""
    batches = windows.batches(batch_size)
    with evaluation_mode(model), torch.no_grad():
        for batch in progress.track(batches, total=len(batches), what=what):
            onlooker.look(states_behind(model, onlooker.blocks_of(model), batch))


def _head_of(model: Any, blocks: Sequence[BlockSite], windows: TokenWindows) -> Head:
    """What `model` makes of the states behind its last block.

    Raises:
        RequestError: it predicts something else than what follows from these, position by position.
    """
    ids = windows.ids[:1, :_LOOKED_AT]
    with evaluation_mode(model), torch.no_grad():
        own = _log_probabilities(model, ids)
        states = states_behind(model, blocks, ids)[0]
        head = Head(model, blocks, windows.ids[:1], states, _REMEDY)
        some = min(len(states), head.chunk_size)
        found = head.log_probabilities(states[:some]).to(own.device)
    if not _alike(found, own[:some]):
        raise RequestError(
            f"what {type(model).__name__} predicts does not follow from the states behind its last block: "
            f"{_REMEDY}"
        )
    return head


def _log_probabilities(model: Any, ids: Tensor) -> Tensor:
    """What `model` itself predicts: ids [1, tokens] -> [tokens, vocabulary], float32."""
    place = model.get_input_embeddings().weight.device
    logits: Tensor = model(input_ids=ids.to(place)).logits[0]
    if bool(logits.isnan().any()):
        raise RequestError(_NAN)
    return logits.float().log_softmax(dim=-1)


def _alike(found: Tensor, expected: Tensor) -> bool:
    """Whether two sets of log-probabilities are the same but for rounding; zero may be among both."""
    scale = float(expected[expected.isfinite()].abs().amax())
    return torch.allclose(found, expected, rtol=0.0, atol=_TOLERANCE * max(scale, 1.0))


def _finite(mean: float) -> float:
    """A divergence without end as the largest number, with a warning; rounding below zero is none."""
    largest = sys.float_info.max
    if mean <= largest:
        return max(mean, 0.0)
    logger.warning(
        "the divergence has no end (a token that is predicted is ruled out): reported as %g", largest
    )
    return largest
