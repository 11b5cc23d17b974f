"""Time between two points of a forward pass, taken without holding the device up."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import nn

Mark = float | torch.cuda.Event


class Stopwatch:
    """Sums up the seconds between `begin` and `end`, which are hooks of modules.

    On a CPU both read the clock. On CUDA, where the host runs ahead, both put an event into the stream, which
    the device stamps when it comes to it. Nothing waits for that; where the device waits for the host, the
    wait counts.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun: Mark | None = None
        self._intervals: list[tuple[Mark, Mark]] = []

    def begin(self, *_: Any) -> None:
        """Begin an interval; one that has begun already goes on."""
        if self._begun is None:
            self._begun = self._mark()

    def end(self, *_: Any) -> None:
        """End the interval."""
        if self._begun is not None:
            self._intervals.append((self._begun, self._mark()))
            self._begun = None

    def take(self) -> float:
        """Seconds in the intervals since the last call; the device must have done all it was given."""
        intervals, self._intervals = self._intervals, []
        return sum(_seconds(begin, end) for begin, end in intervals)

    def _mark(self) -> Mark:
        if self._device.type != "cuda":
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event


@contextmanager
def stopwatch(first: nn.Module | None, last: nn.Module | None, device: torch.device) -> Iterator[Stopwatch]:
    """A stopwatch that runs whenever the model is between the start of `first` and the end of `last`.

    Where there is no such module it never runs.
    """
    watch = Stopwatch(device)
    with ExitStack() as hooks:
        if first is not None and last is not None:
            hooks.callback(first.register_forward_pre_hook(watch.begin).remove)
            hooks.callback(last.register_forward_hook(watch.end).remove)
        yield watch


def now(device: torch.device) -> float:
    """Seconds, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def _seconds(begin: Mark, end: Mark) -> float:
    if isinstance(begin, float) or isinstance(end, float):
        return float(end) - float(begin)  # type: ignore[arg-type]  # both are, on a CPU
    return float(begin.elapsed_time(end)) / 1000
