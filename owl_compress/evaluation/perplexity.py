"""Perplexity of a language model on token windows."""

import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from owl_compress.arguments import checked
from owl_compress.data.windows import TokenWindows
from owl_compress.device import given_device
from owl_compress.documents.measurements import PerplexityRecord
from owl_compress.documents.recipe_fields import ActivationsName
from owl_compress.errors import RequestError
from owl_compress.memory import memory_errors
from owl_compress.models.families import FAMILIES
from owl_compress.models.limits import check_vocabulary
from owl_compress.models.residence import is_streamed
from owl_compress.models.state import evaluation_mode, n_parameters, parameter_device, rest_on_device
from owl_compress.models.structure import BlockSite, find_structure
from owl_compress.progress import SILENT, Progress
from owl_compress.walk.agreement import settled_structure
from owl_compress.walk.blocks import BlockWalk
from owl_compress.walk.capture import Tail, latest_states
from owl_compress.walk.ranks import Ranks
from owl_compress.walk.states import KeepOn

logger = logging.getLogger(__name__)

# Logits are widened to float32 this many bytes at a time: a vocabulary of 262144 would else double the peak.
_CHUNK_BYTES = 64 * 2**20


@runtime_checkable
class Onlooker(Protocol):
    """Who is shown the hidden states behind the last block while a model is evaluated, batch by batch."""

    def blocks_of(self, model: Any) -> Sequence[BlockSite]:
        """The blocks of `model`, which is about to be evaluated."""

    def look(self, states: Tensor) -> None:
        """Take the states [batch, seq_len, hidden] of the next batch; they lie where the model does."""


@checked
def perplexity(
    model: Annotated[Any, nn.Module],
    windows: TokenWindows,
    *,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    progress: Progress = SILENT,
    onlooker: Onlooker | None = None,
    activations: ActivationsName = "auto",
) -> PerplexityRecord:
    """Measure the perplexity of a causal language model: exp of the mean negative log-likelihood per token.

    In every window the first token predicts the second, and so on: seq_len - 1 predictions each, or fewer
    where windows overlap (`TokenWindows.scoring`). Losses are computed in float32 whatever the model's dtype
    and summed in float64, so that the batch size changes nothing but rounding. The model keeps its mode, its
    `use_cache` and its place; with `device` it is moved there for the duration, without it stays where it is.

    Bits per byte and per character are the same losses, in bits, over the text that the scored tokens stand
    for: what models with different tokenizers can be compared by. An `onlooker` is shown the hidden states
    of each batch. Processes that have joined a group of torch.distributed divide the batches, unless somebody
    looks on, and come to the same record each. `activations` says where hidden states wait between the blocks
    of a model that is read block by block.

    A mean loss above 709.78 overflows exp, and a true token of probability zero makes the loss infinite: both
    are reported as the largest float64 (1.8e308, "at least this"), with a warning, since files hold no
    infinity and a model can honestly be that broken.

    Raises:
        RequestError: a loss is NaN (the window is named), the ids are not the model's, or memory is short.
    """
    device = given_device(device)
    check_vocabulary(model, windows.ids)
    losses: list[float] = []
    if is_streamed(model) and onlooker is None:
        with memory_errors("evaluating"):
            losses = losses_by_block(
                model,
                windows,
                batch_size=batch_size,
                device=device,
                keep_on=activations,
                progress=progress,
            )
        _refuse_nan(losses, len(windows), model)
        return _record(model, windows, math.fsum(losses))
    with (
        memory_errors("evaluating"),
        placed(model, device) as place,
        evaluation_mode(model),
        _shown_to(onlooker, model) as show,
    ):
        batches, ranks = windows.batches(batch_size), Ranks.current() if onlooker is None else Ranks()
        mine = range(ranks.rank, len(batches), ranks.of)
        found: dict[int, list[float]] = {}
        for number in progress.track(mine, total=len(mine), what="evaluating"):
            first = number * batch_size
            ranges = windows.scoring.ranges[first : first + len(batches[number])]
            found[number] = window_losses(model, batches[number].to(place), ranges).tolist()
            _refuse_nan(found[number], len(windows), model, first)
            show()
        everywhere = {number: one for part in ranks.gathered(found) for number, one in part.items()}
        losses = [loss for number in range(len(batches)) for loss in everywhere[number]]
    return _record(model, windows, math.fsum(losses))


def _record(model: Any, windows: TokenWindows, loss: float) -> PerplexityRecord:
    """What `loss` in nats, summed over all scored tokens, comes to."""
    scoring, record = windows.scoring, windows.record
    return PerplexityRecord(
        perplexity=_finite_exp(loss / scoring.n_tokens),
        tokens=scoring.n_tokens,
        windows=len(windows),
        seq_len=record.seq_len,
        dtype=str(model.dtype).removeprefix("torch."),
        data=record.source,
        bos=record.bos,
        n_params=n_parameters(model),
        stride=scoring.stride,
        protocol=scoring.protocol,
        characters=scoring.n_characters or None,
        bytes=scoring.n_bytes or None,
        bits_per_character=_bits_per(loss, scoring.n_characters),
        bits_per_byte=_bits_per(loss, scoring.n_bytes),
    )


@torch.inference_mode()
def window_losses(model: Any, ids: Tensor, ranges: Tensor | None = None) -> Tensor:
    """Summed negative log-likelihood of each window: ids [batch, seq_len] -> float64 [batch].

    Of each window the tokens [first, stop) in `ranges` [batch, 2] are scored; by default all but the first.
    """
    return losses_of(model(input_ids=ids).logits, ids, ranges)


@torch.inference_mode()
def losses_of(logits: Tensor, ids: Tensor, ranges: Tensor | None = None) -> Tensor:
    """The same of `logits` [batch, seq_len, vocabulary] that are there."""
    rows = max(1, _CHUNK_BYTES // (4 * logits.shape[-1]))
    sums = torch.zeros(len(ids), dtype=torch.float64, device=logits.device)
    targets = ids.to(logits.device)
    whole = [[1, ids.shape[1]]] * len(ids)
    for window, (first, behind) in enumerate(whole if ranges is None else ranges.tolist()):
        for start in range(first - 1, behind - 1, rows):
            stop = min(start + rows, behind - 1)
            # [rows, vocabulary], [rows] -> [rows]; the token after each position is its target
            chunk = functional.cross_entropy(
                logits[window, start:stop].float(), targets[window, start + 1 : stop + 1], reduction="none"
            )
            sums[window] += chunk.sum(dtype=torch.float64)
    return sums


def losses_by_block(
    model: Any,
    windows: TokenWindows,
    *,
    batch_size: int,
    device: torch.device | None,
    keep_on: KeepOn = "auto",
    progress: Progress = SILENT,
) -> list[float]:
    """The summed loss of each window, of a model whose blocks are not all in memory: each is read once.

    All windows go through a block before the next one comes, which leaves the hidden states of all of them to
    be kept: [windows, seq_len, hidden].

    Raises:
        RequestError: a model whose blocks cannot be run one by one.
    """
    place = device or parameter_device(model)
    structure = find_structure(model)
    if structure.family not in FAMILIES:
        structure = settled_structure(model, structure, windows.ids, place)
    batches = windows.batches(batch_size)
    walk = BlockWalk(model, structure, batches, device=place, keep_on=keep_on)
    losses: list[float] = []
    with walk.prepared():
        with closing(walk.in_order(progress, "evaluating blocks")) as visits:
            for visit in visits:
                visit.advance()
        tail = Tail(model, structure.blocks, batches[0])
        with rest_on_device(model, structure.blocks, place):
            for batch, hidden in zip(batches, walk.hidden, strict=True):
                ranges = windows.scoring.ranges[len(losses) : len(losses) + len(batch)]
                logits = tail.logits(batch, hidden.to(place))
                losses += losses_of(logits, batch.to(place), ranges).tolist()
                walk.keeper.let_go(hidden)
    return losses


@contextmanager
def _shown_to(onlooker: Onlooker | None, model: Any) -> Iterator[Callable[[], None]]:
    """Yield what is called behind each batch, and shows the onlooker the states of it."""
    if onlooker is None:
        yield lambda: None
        return
    with latest_states(onlooker.blocks_of(model)) as latest:
        yield lambda: onlooker.look(latest.pop())


@contextmanager
def placed(model: Any, device: torch.device | str | None) -> Iterator[torch.device]:
    """Move the model to `device` inside the block and back after it; yield where its inputs belong."""
    home: torch.device = model.get_input_embeddings().weight.device
    target = home if device is None else torch.device(device)
    if target.type == "cuda" and target.index is None:
        target = torch.device("cuda", torch.cuda.current_device())
    if target == home:
        yield home
        return
    if is_streamed(model):  # its blocks come to where their inputs are
        with rest_on_device(model, find_structure(model).blocks, target):
            yield target
        return
    try:
        model.to(target)
        yield target
    finally:
        model.to(home)


def _refuse_nan(losses: list[float], n_windows: int, model: Any, first: int = 0) -> None:
    dtype = str(model.dtype).removeprefix("torch.")
    for number, loss in enumerate(losses, start=first + 1):
        if math.isnan(loss):
            raise RequestError(
                f"the model's loss is NaN in window {number} of {n_windows}: its weights are broken, or "
                f"overflow {dtype}; check the checkpoint, or use --dtype float32"
            )


def _bits_per(loss: float, n_units: int | None) -> float | None:
    """`loss` nats in bits for each of so many characters or bytes; None where these are not known, or none.

    A loss without end is the largest number here, as in a perplexity.
    """
    if not n_units:
        return None
    return min(loss / math.log(2) / n_units, sys.float_info.max)


def _finite_exp(mean_loss: float) -> float:
    largest = sys.float_info.max
    if mean_loss <= math.log(largest):
        return math.exp(mean_loss)
    logger.warning("perplexity overflows (mean loss %g per token): reported as %g", mean_loss, largest)
    return largest
