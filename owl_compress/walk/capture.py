"""What the blocks of a model are called with: taken down without running them.

The model runs with its blocks replaced by stand-ins that only take notes. Different blocks may be called
with different masks and rotary embeddings (Gemma 3), so the notes are kept per block.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from owl_compress.errors import RequestError
from owl_compress.models.limits import check_vocabulary
from owl_compress.models.state import parameter_device
from owl_compress.models.structure import BlockSite

UNSUITED = (
    "blocks that hand on more than one stream of hidden states, once each and in order, cannot be measured; "
    "use an allocator and a backend that read no text"
)
"""What is amiss with a model that the walk does not suit, and the remedy."""


class _CaptureDone(Exception):  # noqa: N818 - it ends a forward pass early, nothing went wrong
    """Ends a forward pass once the last stand-in has been called."""


@dataclass(frozen=True)
class Arguments:
    """What one block is called with besides the hidden states."""

    positional: tuple[Any, ...]
    named: dict[str, Any]


@dataclass(frozen=True)
class Captured:
    """One batch: the inputs of the first block, and the other arguments of every block."""

    hidden: Tensor
    arguments: tuple[Arguments, ...]


def capture(model: nn.Module, blocks: Sequence[BlockSite], batches: Sequence[Tensor]) -> Iterator[Captured]:
    """Run everything in front of and between `blocks`, but not the blocks, for each of the `batches`.

    Args:
        model: the whole model, in evaluation mode.
        blocks: its blocks in the order of execution.
        batches: token ids, each of shape [batch, seq_len].

    Raises:
        RequestError: token ids outside its vocabulary, or its forward pass does not call its blocks.
    """
    for token_ids in batches:
        check_vocabulary(model, token_ids)
    further = _further_outputs(model, blocks[0], batches[0][:1, :1])
    shared = _SharedTensors()
    for token_ids in batches:
        notes = _Notes(len(blocks), further)
        with _stand_ins(blocks, notes.take):
            _forward(model, token_ids)
        shared.start_batch()
        yield Captured(notes.hidden[0], tuple(shared.share(call) for call in notes.calls))


def hidden_states_of(outputs: Any) -> Tensor:
    """The hidden states among what a block returns: all of it, or the first of several.

    Raises:
        RequestError: it returns something else.
    """
    if isinstance(outputs, Tensor):
        return outputs
    try:
        hidden = outputs[0]
    except (TypeError, LookupError):
        hidden = None
    if not isinstance(hidden, Tensor):
        raise RequestError(f"a block returns a {type(outputs).__name__} and no hidden states: {UNSUITED}")
    return hidden


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor in its tuples, lists and dictionaries replaced by `change` of it."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Arguments):
        return Arguments(map_tensors(value.positional, change), map_tensors(value.named, change))
    if type(value) in {tuple, list}:
        return type(value)(map_tensors(item, change) for item in value)
    if isinstance(value, dict):
        return {key: map_tensors(item, change) for key, item in value.items()}
    return value


class Tail:
    """What a model does after its last block: final norm, head, and whatever is done to the logits.

    Args:
        model: the whole model, in evaluation mode.
        blocks: its blocks.
        token_ids: any, of shape [batch, seq_len].
    """

    def __init__(self, model: nn.Module, blocks: Sequence[BlockSite], token_ids: Tensor) -> None:
        self._model = model
        self._blocks = blocks
        self._further = _further_outputs(model, blocks[0], token_ids[:1, :1])

    def logits(self, token_ids: Tensor, hidden: Tensor) -> Tensor:
        """Logits [batch, seq_len, vocabulary] of the `token_ids` if the last block returns `hidden`.

        `hidden` [batch, seq_len, hidden] lies where the model does; gradients flow back to it.
        """

        def answer(*_positional: Any, **_named: Any) -> Tensor | tuple[Any, ...]:
            return hidden if self._further is None else (hidden, *self._further)

        with _stand_ins(self._blocks, answer):
            logits: Tensor = self._model(input_ids=token_ids.to(hidden.device)).logits
        return logits


@contextmanager
def latest_states(blocks: Sequence[BlockSite]) -> Iterator[list[Tensor]]:
    """Yield a list that holds what the last block returned last: hidden states [batch, seq_len, hidden]."""
    latest: list[Tensor] = []

    def on_output(_module: nn.Module, _arguments: Any, outputs: Any) -> None:
        latest[:] = [hidden_states_of(outputs)]

    handle = blocks[-1].module.register_forward_hook(on_output)
    try:
        yield latest
    finally:
        handle.remove()


def states_behind(model: nn.Module, blocks: Sequence[BlockSite], token_ids: Tensor) -> Tensor:
    """Hidden states [batch, seq_len, hidden] behind the last block, of a pass that ends there."""

    def on_output(_module: nn.Module, _arguments: Any, _outputs: Any) -> None:
        raise _CaptureDone

    with latest_states(blocks) as latest:
        handle = blocks[-1].module.register_forward_hook(on_output)
        try:
            _forward(model, token_ids)
        finally:
            handle.remove()
    return latest[0]


class _Notes:
    """Stands in for all blocks during one forward pass, and takes down what they are called with."""

    def __init__(self, n_blocks: int, further: tuple[Any, ...] | None) -> None:
        self.hidden: list[Tensor] = []
        self.calls: list[Arguments] = []
        self._n_blocks = n_blocks
        self._further = further

    def take(self, *positional: Any, **named: Any) -> Tensor | tuple[Any, ...]:
        if positional:
            hidden, positional = positional[0], positional[1:]
        elif "hidden_states" in named:
            hidden = named.pop("hidden_states")
        else:
            raise RequestError(f"a block is called without hidden states: {UNSUITED}")
        if not self.calls:
            self.hidden.append(hidden)
        self.calls.append(Arguments(positional, named))
        if len(self.calls) == self._n_blocks:
            raise _CaptureDone
        return hidden if self._further is None else (hidden, *self._further)


class _SharedTensors:
    """Keeps one copy of tensors that are equal in every batch: masks, positions, rotary embeddings."""

    _REMEMBERED = 16

    def __init__(self) -> None:
        self._known: list[Tensor] = []
        self._this_batch: dict[int, tuple[Tensor, Tensor]] = {}

    def start_batch(self) -> None:
        self._this_batch.clear()

    def share(self, arguments: Arguments) -> Arguments:
        shared: Arguments = map_tensors(arguments, self._share_tensor)
        return shared

    def _share_tensor(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._this_batch:
            kept = next((known for known in self._known if _same(known, tensor)), tensor)
            if kept is tensor:
                self._known = [*self._known, tensor][-self._REMEMBERED :]
            self._this_batch[id(tensor)] = (tensor, kept)  # holding `tensor` keeps its id from being reused
        return self._this_batch[id(tensor)][1]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def _further_outputs(model: nn.Module, block: BlockSite, token_ids: Tensor) -> tuple[Any, ...] | None:
    """What a block returns besides its hidden states, learnt from one token; None if it is a bare tensor."""
    found: list[Any] = []

    def on_output(_module: nn.Module, _arguments: Any, outputs: Any) -> None:
        found.append(outputs)
        raise _CaptureDone

    handle = block.module.register_forward_hook(on_output)
    try:
        _forward(model, token_ids)
    finally:
        handle.remove()
    return None if isinstance(found[0], Tensor) else tuple(found[0][1:])


def _forward(model: nn.Module, token_ids: Tensor) -> None:
    try:
        model(input_ids=token_ids.to(parameter_device(model)))
    except _CaptureDone:
        return
    raise RequestError("the model's forward pass does not call its blocks: the architecture is unknown")


@contextmanager
def _stand_ins(blocks: Sequence[BlockSite], stand_in: Callable[..., Any]) -> Iterator[None]:
    """Replace the forward of every block; one that an instance had of its own comes back afterwards."""
    own = [block.module.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.module.__dict__["forward"] = stand_in
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            block.module.__dict__.pop("forward", None)
            if forward is not None:
                block.module.__dict__["forward"] = forward
