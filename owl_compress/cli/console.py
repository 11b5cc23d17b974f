"""What the command line shows: progress on stderr, tables or JSON on stdout."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from owl_compress.cli.sheet import Sheet
from owl_compress.cli.terminal import tell
from owl_compress.plain_text import plain
from owl_compress.progress import SILENT, Progress

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 10.0


class _Console(Console):
    """A console that leaves a reader who went away to whoever called, instead of ending the process."""

    def on_broken_pipe(self) -> None:
        """Tell that nobody reads."""
        raise BrokenPipeError


class BarProgress:
    """A bar on a terminal: steps done, time left, memory held at most."""

    def track(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
        """Yield `items` under a bar."""
        columns = (
            TextColumn("{task.description:<20}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[memory]}"),
        )
        with Bar(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(plain(what), total=total, memory="")
            for item in items:
                yield item
                bar.update(task, advance=1, memory=_memory())


class LineProgress:
    """Plain lines for logs: one every ten seconds, and the last step of several."""

    def track(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
        """Yield `items`, writing a line now and then."""
        start = last = monotonic()
        for done, item in enumerate(items, start=1):
            yield item
            now = monotonic()
            if (done == total and total > 1) or now - last > _SECONDS_BETWEEN_LINES:
                last = now
                left = (now - start) / done * (total - done)
                tell(f"{what}: {done}/{total}, {now - start:.0f} s, {left:.0f} s left, {_memory()}")


def _memory() -> str:
    import torch  # loaded by then; --help must not wait for it

    from owl_compress.memory import peak_host_bytes

    host = f"host {peak_host_bytes() / 2**30:.1f} GiB"
    if not torch.cuda.is_available():
        return host
    return f"{host}, device {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"


@dataclass(frozen=True)
class Output:
    """Where the answer of a command goes: `as_json` leaves stdout to one JSON value."""

    as_json: bool = False
    quiet: bool = False

    def of_process(self, *, leads: bool) -> "Output":
        """The same for one of several processes: only the one that leads says anything."""
        return self if leads else Output(quiet=True)

    @property
    def progress(self) -> Progress:
        """The progress that fits the terminal."""
        if self.quiet:
            return SILENT
        return BarProgress() if sys.stderr.isatty() else LineProgress()

    def say(self, text: str) -> None:
        """A remark for people, on stderr."""
        if not self.quiet:
            tell(text)

    def answer(
        self, value: Mapping[str, Any] | Sequence[Any], shown: Sheet | Sequence[str] | None = None
    ) -> None:
        """The answer of the command: `value` as JSON, or the table or lines that show it."""
        if self.as_json:
            sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
        elif shown is not None and not self.quiet:
            _print(shown)
        sys.stdout.flush()  # what cannot be written is told here, before anything else is said

    def show(self, table: Sheet) -> None:
        """A further table for people; JSON has its content in the answer already."""
        if not self.as_json:
            self.answer({}, table)


def _print(shown: Sheet | Sequence[str]) -> None:
    """Write to stdout: a table as wide as the terminal at most, in a pipe as wide as it is."""
    console = _Console(highlight=False, markup=False, emoji=False)
    if isinstance(shown, Sheet):
        shown = shown.fitting(console.width) if console.is_terminal else shown
        head, body = shown.head(), shown.body()
    else:
        head, body = [], list(shown)
    for line in head:
        console.print(Text(plain(line), style="bold"), soft_wrap=True)
    for line in body:
        console.print(Text(plain(line)), soft_wrap=True)
    console.print()
