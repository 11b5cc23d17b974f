"""Linears of a block told of their inputs in turn, each behind the changed ones before it in the block.

Source: GPTQ (arXiv 2210.17323), whose code calls it true-sequential and takes a pass over the block for
every turn. Linears that read the same tensor have one turn. Here a single pass over the batches serves all of
them: the forward pass of every batch stands still in front of the first linear of a turn until all batches
have come as far and the linears of that turn have been changed. Each runs in a greenlet, which is what lets a
function stop in its middle and go on later without a thread of its own.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from owl_compress.models.structure import LinearSite
from owl_compress.walk.gathering import LinearGroup, checked_group, hooked
from owl_compress.walk.input_statistics import Statistic
from owl_compress.walk.live_bytes import LiveBytes
from owl_compress.walk.ranks import Ranks

Run = Callable[[], Tensor]
"""The forward pass of one batch through the block: what comes out."""


@dataclass(frozen=True)
class Turns:
    """Which linears of a block have a turn, by their names, and what standing still there takes.

    Attributes:
        names: of each turn, in order; linears that a pass calls several times or not at all have none.
        may_stand: whether passes can stand still in front of them and change nothing for others.
        held_bytes: what a pass holds at most while it does.
    """

    names: tuple[tuple[str, ...], ...]
    may_stand: bool
    held_bytes: int

    @classmethod
    def of(cls, linears: Sequence[LinearSite], block: nn.Module, run: Run) -> "Turns":
        """Look at one pass, `run`, through the `block`."""
        is_compiled = _is_compiled(block)
        live = None if is_compiled else LiveBytes()  # what is compiled is not looked into
        look = _Look(live)
        with live or nullcontext(), hooked({linear: partial(look.note, linear) for linear in linears}):
            run()
        n_calls = Counter(call.name for call in look.calls)
        once = [call for call in look.calls if n_calls[call.name] == 1]
        turns: dict[int, list[str]] = {}
        for call in once:
            turns.setdefault(call.turn, []).append(call.name)
        outside = _surroundings()
        may_stand = not is_compiled and all(call.surroundings == outside for call in once)
        held = max((call.held_bytes for call in once), default=0)
        return cls(tuple(map(tuple, turns.values())), may_stand, held)


@dataclass(frozen=True)
class _Call:
    """Of a linear, in the pass that is looked at; those that read the same tensor have one `turn`."""

    name: str
    turn: int
    inputs: weakref.ref[Tensor]
    held_bytes: int
    surroundings: tuple[object, ...]


class _Look:
    """Takes down the calls of one pass, and holds nothing of it."""

    def __init__(self, live: LiveBytes | None) -> None:
        self._live = live
        self.calls: list[_Call] = []

    def note(self, linear: LinearSite, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A linear is about to run."""
        turn = next((call.turn for call in self.calls if call.inputs() is inputs[0]), len(self.calls))
        held = self._live.count() if self._live else 0
        self.calls.append(_Call(linear.name, turn, weakref.ref(inputs[0]), held, _surroundings()))


def _surroundings() -> tuple[object, ...]:
    """What torch keeps for the thread, not for a greenlet: it must be the same wherever one stands still."""
    kinds = ("cpu", "cuda")
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *(torch.is_autocast_enabled(kind) for kind in kinds),
        *(torch.get_autocast_dtype(kind) for kind in kinds),
    )


def _is_compiled(block: nn.Module) -> bool:
    """Whether a part of it goes through torch.compile, which has the interpreter watched while it runs."""
    return any(
        module._compiled_call_impl is not None or hasattr(module.forward, "_torchdynamo_orig_callable")  # noqa: SLF001
        for module in block.modules()
    )


class TurnTaking:
    """Forward passes through one block that stand still at every turn of its linears.

    Args:
        turns: the linears of each, in order.
        runs: the passes, one for each batch.
        ranks: processes that gather together.
        working: a context that passes run in; it is left while they stand still.
    """

    def __init__(
        self,
        turns: Sequence[Sequence[LinearSite]],
        runs: Sequence[Run],
        ranks: Ranks,
        working: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._turns = turns
        self._passes = [_Pass(run) for run in runs]
        self._ranks = ranks
        self._working = working
        self._statistic: Statistic | None = None  # of the turn that passes are on their way to
        self.left: list[LinearSite] = []

    def groups(
        self, kind: type[Statistic], end: Callable[[int, Tensor], None] | None
    ) -> Generator[LinearGroup, None, None]:
        """Each turn with the statistic of its input in all passes; its linears may be changed then.

        In the end the number and the outputs of each pass go to `end`; for None they are not computed. Where
        passes do not all call the linears in the order of their turns, all end, and the linears that have had
        none are `left`. Close the generator where it may be left early: that ends the passes, too.

        Raises:
            RequestError: NaN or Inf in inputs.
        """
        hooks = {
            linear: partial(self._stand_still, number)
            for number, turn in enumerate(self._turns)
            for linear in turn
        }
        try:
            with hooked(hooks):
                for number, turn in enumerate(self._turns):
                    statistic = self._gathered(number, turn, kind)
                    if statistic is None:
                        self.left = [linear for other in self._turns[number:] for linear in other]
                        return
                    group = checked_group(tuple(turn), statistic, has_turn=True)
                    del statistic  # that of the next turn is made when this one is gone
                    yield group
                    del group
                if end is not None:
                    with self._working():
                        for number, one in enumerate(self._passes):
                            end(number, one.switch())
        finally:
            for one in self._passes:
                if not one.dead:
                    one.throw()

    def _gathered(self, number: int, turn: Sequence[LinearSite], kind: type[Statistic]) -> Statistic | None:
        """The statistic of a turn, all passes taken up to it; None where one of them does not get there."""
        self._statistic = statistic = kind.empty(turn[0].shape[1], turn[0].weight.device)
        with self._working():
            is_regular = all(one.comes_to(number) for one in self._passes)
        self._statistic = None
        counts = self._ranks.gathered(statistic.n_tokens if is_regular else None)
        if None in counts:
            return None
        self._ranks.add_up_(statistic.sums)
        statistic.n_tokens = sum(count for count in counts if count is not None)
        return statistic

    def _stand_still(self, number: int, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """In front of a linear of turn `number`: its pass stops before the first of a turn.

        Whoever else calls the linear, while all passes stand still, is no pass.
        """
        one, read = getcurrent(), inputs[0]
        if not isinstance(one, _Pass):
            return
        if number < len(one.read):
            if one.read[number]() is not read:
                raise _OutOfTurn
            return
        if number > len(one.read) or self._statistic is None:
            raise _OutOfTurn
        one.read.append(weakref.ref(read))
        self._statistic.add(read.reshape(-1, read.shape[-1]))  # [..., in] -> [tokens, in]
        one.stand_still()


class _OutOfTurn(Exception):  # noqa: N818 - nothing went wrong, the text has other calls
    """A pass calls linears in another order than the one that was looked at."""


class _Pass(greenlet):
    """The forward pass of one batch, and the tensors that the turns so far have read in it."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.gr_context = copy_context()
        self.read: list[weakref.ref[Tensor]] = []

    def comes_to(self, number: int) -> bool:
        """Let it go on to the turn of that number; whether this is where it stands then."""
        try:
            self.switch()
        except _OutOfTurn:
            return False
        return len(self.read) == number + 1

    def stand_still(self) -> None:
        """Let whoever runs this go on; called inside of it."""
        if self.parent is not None:
            self.parent.switch()
