"""Linears of a block told of their inputs in turn, each behind the changed ones before it in the block.

Source: GPTQ (arXiv 2210.17323), whose code calls it true-sequential and takes a pass over the block for
every turn. Linears that read the same tensor have one turn. Here a single pass over the batches serves all of
them: the forward pass of every batch stands still in front of the first linear of a turn until all batches
have come as far and the linears of that turn have been changed. Each runs in a greenlet, which is what lets a
function stop in its middle and go on later without a thread of its own.
"""

import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any

from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from owl_compress.errors import RequestError
from owl_compress.models.structure import LinearSite
from owl_compress.walk.gathering import LinearGroup, checked_group
from owl_compress.walk.input_statistics import Statistic
from owl_compress.walk.ranks import Ranks

Turn = tuple[LinearSite, ...]
"""Linears that read the same tensor."""

Run = Callable[[], Tensor]
"""The forward pass of one batch through the block: what comes out."""


def turns_of(linears: Sequence[LinearSite], run: Run) -> tuple[Turn, ...]:
    """The turns of the `linears` of a block, in the order in which the pass `run` calls them.

    There are none where it calls one of them not at all, or more than once, as experts of a mixture are.
    """
    called: list[tuple[LinearSite, Tensor]] = []

    def noted(linear: LinearSite) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _module, arguments: called.append((linear, arguments[0]))

    with _hooked({linear: noted(linear) for linear in linears}):
        run()
    if sorted(linear.name for linear, _ in called) != sorted(linear.name for linear in linears):
        return ()
    turns: dict[int, list[LinearSite]] = {}
    for linear, inputs in called:
        turns.setdefault(id(inputs), []).append(linear)
    return tuple(map(tuple, turns.values()))


def bytes_held(linears: Sequence[LinearSite], hidden_size: int, n_tokens: int, element_size: int) -> int:
    """What forward passes over so many tokens hold while all of them stand in front of one turn.

    That is the stream past the linears, and what the widest of them is about to read.
    """
    widest = max((linear.shape[1] for linear in linears), default=0)
    return n_tokens * (hidden_size + max(widest, hidden_size)) * element_size


class TurnTaking:
    """Forward passes through one block that stand still at every turn of its linears.

    Args:
        turns: of the linears, in order.
        runs: the passes, one for each batch.
        ranks: processes that gather together.
        working: a context that passes run in; it is left while they stand still.
    """

    def __init__(
        self,
        turns: Sequence[Turn],
        runs: Sequence[Run],
        ranks: Ranks,
        working: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._turns = turns
        self._passes = [_Pass(run) for run in runs]
        self._ranks = ranks
        self._working = working
        self._statistic: Statistic | None = None  # of the turn that passes are on their way to

    def groups(
        self, kind: type[Statistic], end: Callable[[int, Tensor], None] | None
    ) -> Generator[LinearGroup, None, None]:
        """Each turn with the statistic of its input in all passes; its linears may be changed then.

        In the end the number and the outputs of each pass go to `end`; for None they are not computed. Close
        the generator where it may be left early: that ends the passes.

        Raises:
            RequestError: NaN or Inf in inputs, or a pass that calls the linears in another order.
        """
        hooks = {
            linear: partial(self._stand_still, linear, number)
            for number, turn in enumerate(self._turns)
            for linear in turn
        }
        try:
            with _hooked(hooks):
                for number, turn in enumerate(self._turns):
                    yield self._group(number, turn, kind)
                if end is not None:
                    self._statistic = None
                    with self._working():
                        for number, one in enumerate(self._passes):
                            end(number, one.switch())
        finally:
            for one in self._passes:
                if not one.dead:
                    one.throw()

    def _group(self, number: int, turn: Turn, kind: type[Statistic]) -> LinearGroup:
        """A turn with its statistic, all passes taken up to it."""
        self._statistic = statistic = kind.empty(turn[0].shape[1], turn[0].weight.device)
        with self._working():
            for one in self._passes:
                one.switch()
                if len(one.read) != number + 1:
                    raise irregular(turn)
        self._statistic = None  # that of the next turn is made when this one is gone
        if self._ranks.of > 1:
            self._ranks.add_up_(statistic.sums)
            statistic.n_tokens = sum(self._ranks.gathered(statistic.n_tokens))
        return checked_group(turn, statistic)

    def _stand_still(
        self, linear: LinearSite, number: int, _module: nn.Module, inputs: tuple[Any, ...]
    ) -> None:
        """In front of a linear of turn `number`, in one of the passes: stop before the first of a turn."""
        one, read = getcurrent(), inputs[0]
        if not isinstance(one, _Pass):
            raise TypeError("the block runs outside of the passes that take turns in it")
        if number < len(one.read):
            if one.read[number]() is not read:
                raise irregular([linear])
            return
        if number > len(one.read) or self._statistic is None:
            raise irregular([linear])
        one.read.append(weakref.ref(read))
        self._statistic.add(read.reshape(-1, read.shape[-1]))  # [..., in] -> [tokens, in]
        one.stand_still()


class _Pass(greenlet):
    """The forward pass of one batch, and the tensors that the turns so far have read in it."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.gr_context = copy_context()
        self.read: list[weakref.ref[Tensor]] = []

    def stand_still(self) -> None:
        """Let whoever runs this go on; called inside of it."""
        if self.parent is not None:
            self.parent.switch()


@contextmanager
def _hooked(hooks: Mapping[LinearSite, Callable[[nn.Module, tuple[Any, ...]], None]]) -> Iterator[None]:
    """Inside, each of the linears calls what belongs to it before it runs."""
    with ExitStack() as stack:
        for linear, hook in hooks.items():
            stack.callback(linear.module.register_forward_pre_hook(hook).remove)
        yield


def irregular(linears: Sequence[LinearSite]) -> RequestError:
    """Why linears cannot take turns, and what can be done."""
    return RequestError(
        f"{linears[0].name} is not called once for every text and always in the same order, so that it has "
        "no turn of its own: use --statistics sequential"
    )
