"""How long-running functions tell how far they are; the command line draws it, the library stays silent."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@runtime_checkable
class Progress(Protocol):
    """Something that watches an iteration."""

    def track(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
        """Yield `items` unchanged; `total` is their number, `what` says what is done ("measuring blocks")."""
        ...


class Silent:
    """The progress of a library call: none."""

    def track(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:  # noqa: ARG002
        """Yield `items` unchanged."""
        yield from items


SILENT = Silent()


def shown(progress: Progress, what: str, work: Callable[[], T]) -> T:
    """Do `work`, which has no steps of its own, while `progress` shows that it goes on."""
    (done,) = [work() for _ in progress.track((None,), 1, what)]
    return done
