"""What a dense model predicts on a text, kept so that other models can be held against it.

Of the dense model hidden states are kept, from which its logits are computed anew, a piece at a time: exact,
over the whole vocabulary and at every scored position, and no memory to speak of.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from owl_compress.arguments import checked
from owl_compress.data.windows import TokenWindows
from owl_compress.device import given_device
from owl_compress.documents.measurements import PerplexityRecord
from owl_compress.errors import RequestError
from owl_compress.evaluation.perplexity import Onlooker, perplexity, placed
from owl_compress.memory import memory_errors
from owl_compress.models.limits import check_vocabulary
from owl_compress.models.state import evaluation_mode
from owl_compress.models.structure import BlockSite, find_structure
from owl_compress.progress import SILENT, Progress
from owl_compress.walk.capture import states_behind
from owl_compress.walk.outputs import NAN_PREDICTED, Head, are_alike

_REMEDY = "what it predicts cannot be held against another model; leave agreement out"
_PROBED = 16
"""Positions by which a head is known again."""
_LOOKED_AT = 64
"""Tokens on which it is tried whether predictions follow from the states behind the last block."""


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
        if not are_alike(self._probed(head), self._probe):
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
        run_watched(model, windows, recorder, batch_size, progress, "running the dense model")
        return recorder.predictions()


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


class Scored:
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
        self._head = head_of(model, self._blocks, windows)
        self._scored = Scored(windows)
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


@contextmanager
def _recording(
    model: Any, windows: TokenWindows, name: str | None, device: torch.device | None
) -> Iterator[_Recorder]:
    """Who looks on while the dense model runs; it is on its device inside."""
    check_vocabulary(model, windows.ids)
    with memory_errors("evaluating"), placed(model, device):
        yield _Recorder(model, windows, name)


def run_watched(
    model: Any,
    windows: TokenWindows,
    onlooker: Onlooker,
    batch_size: int,
    progress: Progress,
    what: str,
) -> None:
    """Show the `onlooker` the states behind the last block of `model`, which no logits are made of."""
    batches = windows.batches(batch_size)
    with evaluation_mode(model), torch.no_grad():
        for batch in progress.track(batches, total=len(batches), what=what):
            onlooker.look(states_behind(model, onlooker.blocks_of(model), batch))


def head_of(model: Any, blocks: Sequence[BlockSite], windows: TokenWindows) -> Head:
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
    if not are_alike(found, own[:some]):
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
        raise RequestError(NAN_PREDICTED)
    return logits.float().log_softmax(dim=-1)
