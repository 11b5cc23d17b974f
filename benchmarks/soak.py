"""Does memory stay flat over many runs, and is nothing lost or half done when a process is killed?

    python benchmarks/soak.py [--only runs|kills] [--runs 30] [--kills 1000] [--seed 0] [--stages run]
        > rows.jsonl

Tiny models of random weights. Start it with OMP_NUM_THREADS=1: processes are forked from one that has loaded
everything, which must not have other threads.

- runs: so many runs in one process, what is resident after each, and how much it grows with a run, over the
  last two thirds of them.
- kills: SIGKILL, half at a moment drawn from the time that the command takes, half before a step in the file
  system drawn from those that it takes (opening to write, renaming, removing, making and linking). What then
  has the name of the output must be the whole of it. The same command follows, both times with `--resume`
  where the stage has it, and must end in what an uninterrupted one makes, leaving nothing beside it, or
  refuse with exit code 2 because it is all there already.
"""

import argparse
import gc
import os
import random
import signal
from collections import Counter
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any

import numpy as np
from rows import print_row
from soak_outputs import contents, differences
from soak_processes import forked, load_everything
from soak_stages import STAGES, Stage, prepare

from owl_compress import Recipe, run

_BACKENDS = ("wanda", "sparsegpt", "gptq", "structured")
_BUDGETS: dict[str, dict[str, Any]] = {
    "gptq": {"bits": 3, "bit_choices": "3", "group_size": 8},
    "structured": {"prune_ratio": 0.3, "allocator": "uniform"},
}


def main() -> None:
    """The rows of one question, or of both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", choices=["", "runs", "kills"])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", default=",".join(STAGES))
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        work = Path(folder).resolve()
        prepare(work / "inputs")
        os.chdir(work)
        if arguments.only in ("", "kills"):
            _kills(work, arguments.stages.split(","), arguments.kills, arguments.seed)
        if arguments.only in ("", "runs"):
            _runs(arguments.runs)


def _runs(n_runs: int) -> None:
    resident = []
    for backend in islice(cycle(_BACKENDS), n_runs):
        options = _BUDGETS.get(backend, {"sparsity": 0.5})
        text = {"calib": "inputs/text.txt", "data": "inputs/other.txt", "samples": 4, "seq_len": 64}
        recipe = {"model": "inputs/model", "backend": backend, "allocator": "owl", **text, **options}
        run(Recipe.from_options(recipe), "out", overwrite=True)
        gc.collect()
        resident.append(_resident_bytes())
    settled = resident[n_runs // 3 :]
    slope, _ = np.polyfit(range(len(settled)), settled, 1)
    print_row("soak", name="runs", resident_bytes=resident, growth_bytes_per_run=round(float(slope)))


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Subject:
    """A stage, what it makes when nobody disturbs it, and what came of killing it."""

    name: str
    stage: Stage
    expected: dict[str, Any]
    seconds: float
    n_steps: int
    came: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def _kills(work: Path, names: list[str], n_kills: int, seed: int) -> None:
    """Kill the stages in turn; one row for each."""
    load_everything()
    subjects = [_undisturbed(work, name) for name in names]
    draw = random.Random(seed)
    for subject in islice(cycle(subjects), n_kills):
        folder = work / "try"
        rmtree(folder, ignore_errors=True)
        folder.mkdir()
        _kill(subject, folder, draw)
        _go_on(subject, folder)
    for subject in subjects:
        print_row(
            "soak",
            name="kills",
            stage=subject.name,
            command_line=" ".join(subject.stage.command),
            resumes=subject.stage.resumes,
            kills=subject.came.total(),
            came_of_it=dict(subject.came),
            refusals=dict(subject.refusals),
            faults=subject.faults,
            steps=subject.n_steps,
            seed=seed,
        )


def _undisturbed(work: Path, name: str) -> Subject:
    """Run the stage in peace, twice: what differs is no property of the result."""
    stage = STAGES[name]
    for attempt in ("first", "second"):
        folder = work / f"{attempt} {name}"
        folder.mkdir()
        start = monotonic()
        ended = forked(stage.line, folder)
        if ended.wait() != 0:
            raise RuntimeError(f"{name}: {ended.printed()}")
        n_steps = ended.n_steps()
        seconds = monotonic() - start
    first, second = (contents(work / f"{attempt} {name}") for attempt in ("first", "second"))
    if differing := differences(first, second):
        raise RuntimeError(f"{name} is not the same twice: {differing}")
    return Subject(name, stage, second, seconds, n_steps)


def _kill(subject: Subject, folder: Path, draw: random.Random) -> None:
    """Start the stage until one try is killed before its end."""
    while True:
        by_step = draw.random() < 0.5
        if by_step:
            started = forked(subject.stage.line, folder, stop_at=draw.randint(1, subject.n_steps))
        else:
            started = forked(subject.stage.line, folder)
            sleep(draw.random() * subject.seconds)
            os.kill(started.pid, signal.SIGKILL)
        if started.wait() == -signal.SIGKILL:
            return
        rmtree(folder)
        folder.mkdir()


def _go_on(subject: Subject, folder: Path) -> None:
    """Look at what was left, start the same again, and note what came of it."""
    stage = subject.stage
    left = contents(folder)
    is_there = (folder / stage.output).exists()
    of_output = {path: held for path, held in left.items() if path.partition("/")[0] == stage.output}
    is_whole = is_there and not differences(subject.expected, of_output)
    if is_there and not is_whole and not stage.grows:
        subject.faults.append(f"looks finished: {differences(subject.expected, of_output)}")
    again = forked(stage.line, folder)
    code = again.wait()
    if code == 2 and is_whole:
        subject.came["refused, being whole already"] += 1
        subject.refusals[again.printed().strip()[:200]] += 1
    elif code != 0:
        subject.came["fault"] += 1
        subject.faults.append(f"exit code {code}: {again.printed()[-2000:]}")
    elif differing := differences(subject.expected, contents(folder)):
        subject.came["fault"] += 1
        subject.faults.append(f"differs: {differing}")
    else:
        kept = any(path.partition("/")[0] != stage.output for path in left) or is_there
        subject.came["whole already" if is_whole else "gone on" if kept else "from the start"] += 1


if __name__ == "__main__":
    main()
