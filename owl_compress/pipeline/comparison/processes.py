"""A comparison in several processes, each with a device of its own, that share out the cells.

Whoever starts them leads: it begins the folder, tells of rows as they come, and carries out what is left when
all have ended, which is what a process that died was at.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import sleep
from typing import Any

from owl_compress.consent import Consent
from owl_compress.documents.comparison import ROWS, SHARED, Row
from owl_compress.documents.row_log import RowLog, RowReader
from owl_compress.errors import RequestError
from owl_compress.interrupts import heed_signals

_SECONDS_BETWEEN_LOOKS = 0.25
_UNSATISFIABLE = 2
_CODE = "from owl_compress.pipeline.comparison.processes import main; main()"


@dataclass(frozen=True)
class Jobs:
    """So many processes, each with the GPU that is its alone, if there are any; `device` as the user said."""

    gpus: tuple[str | None, ...]
    device: str | None = None

    @classmethod
    def of(cls, n_jobs: int, device: str | None) -> "Jobs":
        """As many processes as are asked for, on as many GPUs where there are any.

        Raises:
            RequestError: no process, more than there are GPUs, or one device named for several processes.
        """
        import torch  # noqa: PLC0415 - a refusal of the grid must not wait for it

        if n_jobs < 1:
            raise RequestError(f"--jobs {n_jobs} is no number of processes: give 1 or more")
        if n_jobs == 1:
            return cls((None,), device)
        if device not in {None, "auto", "cpu", "cuda"}:
            raise RequestError(f"--jobs {n_jobs} takes a device for each: drop --device {device}, or --jobs")
        n_gpus = torch.cuda.device_count() if device != "cpu" else 0
        if n_gpus and n_jobs > n_gpus:
            raise RequestError(
                f"--jobs {n_jobs} takes as many GPUs and there are {n_gpus}: ask for that many"
            )
        if not n_gpus:
            return cls((None,) * n_jobs, device)
        return cls(tuple(f"cuda:{number}" for number in range(n_jobs)), device)

    def run(self, grid: Path, out: Path, consent: Consent, command: str) -> Iterator[Row]:
        """Start them on a folder that was begun; yield the rows as they come, until all have ended.

        What is left when one of them died is left to the caller.
        """
        log = RowLog(out / ROWS)
        news = RowReader(log.path, log.size)
        with ExitStack() as running:
            processes = [
                running.enter_context(
                    _process(
                        out / SHARED / f"process-{rank}.log",
                        self._threads,
                        grid=str(grid), out=str(out), consent=asdict(consent), command=command,
                        device=self.device, gpu=gpu, rank=rank, of=len(self.gpus), start=news.offset,
                        parent=os.getpid(),
                    )
                )
                for rank, gpu in enumerate(self.gpus)
            ]  # fmt: skip
            while any(process.poll() is None for process in processes):
                yield from news.fresh()
                sleep(_SECONDS_BETWEEN_LOOKS)
        yield from news.fresh()

    @property
    def _threads(self) -> int:
        """Of each: the cores are shared out, too."""
        return max(1, (os.cpu_count() or 1) // len(self.gpus))


@contextmanager
def _process(log: Path, threads: int, **task: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """A process at work, which ends when the block does; what it says is in `log` if it said anything."""
    variables = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    with log.open("wb") as said:
        process = subprocess.Popen(  # noqa: S603 - this very Python
            [sys.executable, "-c", _CODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env=variables,
            start_new_session=True,  # Ctrl-C is for who leads, who passes it on
        )
        if process.stdin is not None:
            process.stdin.write(json.dumps(task).encode())
            process.stdin.close()
        try:
            yield process
        finally:
            _end(process)
    if not log.stat().st_size:
        log.unlink()


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main(arguments: Sequence[str] = ()) -> None:  # noqa: ARG001 - nothing is on the command line
    """One of the processes: its task is on stdin."""
    from owl_compress.pipeline.comparison.cells import Place  # noqa: PLC0415 - loads torch
    from owl_compress.pipeline.comparison.comparison import Comparison  # noqa: PLC0415 - it imports this
    from owl_compress.pipeline.comparison.share import Share  # noqa: PLC0415

    task = json.load(sys.stdin)
    heed_signals()
    comparison = Comparison.read(
        task["grid"], Consent(**task["consent"]), place=Place(task["device"], task["gpu"])
    )
    comparison = comparison.named(task["command"])
    share = Share(task["rank"], task["of"], leads=False, start=task["start"], parent=task["parent"])
    try:
        comparison.run(Path(task["out"]), share=share)
    except KeyboardInterrupt:
        sys.exit(_UNSATISFIABLE)
    except RequestError as error:
        sys.exit(str(error))
