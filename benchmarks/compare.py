"""What does a comparison cost beside its parts, and beside as many separate runs? One row.

    python benchmarks/compare.py --calib validation.txt --data test.txt > rows.jsonl

Eight cells on the embedded model, wanda at 50 and 60 % by four allocators, statistics of the dense model. The
parts are what the rows say of their stages, and loading the model once: without reading texts, hashing files,
putting the model back, tables and page. The runs are `owl-compress run` with the same recipes, a process and
one folder each, whose checkpoints are thrown away. Parts are held against the seconds of the comparison by
the clock, within which they were taken; runs, which come later, by CPU seconds.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from rows import print_row

from owl_compress import load
from owl_compress.documents.comparison import Row, read_results
from owl_compress.documents.recipe import Recipe


def _grid(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": "builtin",
        "calib": arguments.calib,
        "data": arguments.data,
        "samples": arguments.samples,
        "measure-samples": arguments.samples,
        "seq-len": arguments.seq_len,
        "max-windows": arguments.max_windows,
        "sampling": "first",
        "statistics": "dense",
        "backend": "wanda",
        "allocator": ["uniform", "owl", "linear-depth", "dlp"],
        "sparsity": [0.5, 0.6],
    }


def _seconds(*command: str) -> tuple[float, float]:
    """What a command takes by the clock, and of the CPUs."""
    start, before = perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "owl_compress", *command, "--quiet"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return perf_counter() - start, cpu


def _cpu_seconds_of_runs(rows: Sequence[Row], arguments: argparse.Namespace, folder: Path) -> float:
    """Every compressed row made by a process of its own."""
    total = 0.0
    for number, row in enumerate(row for row in rows if not row.dense):
        recipe = folder / f"{number}.yaml"
        settings = Recipe.from_options({**row.recipe, "data": arguments.data})
        recipe.write_text(settings.to_yaml(), encoding="utf-8")
        with TemporaryDirectory(dir=folder) as out:
            total += _seconds("run", str(recipe), "-o", f"{out}/OUT")[1]
    return total


def main() -> None:
    """Compare, then run one by one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--max-windows", type=int, default=20)
    arguments = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        grid = folder / "grid.yaml"
        grid.write_text(json.dumps(_grid(arguments)), encoding="utf-8")
        whole, cpu = _seconds("compare", str(grid), "-o", str(folder / "RESULTS"))
        rows = read_results(folder / "RESULTS")
        refused = [row.reason for row in rows if not row.is_measured]
        if refused:
            raise SystemExit(f"not all cells were carried out: {refused[0]}")
        start = perf_counter()
        load("builtin")
        loading = perf_counter() - start
        parts = loading + sum(row.seconds["total"] for row in rows)
        runs = _cpu_seconds_of_runs(rows, arguments, folder)
    print_row(
        "compare",
        cells=len(rows) - 1,
        seconds=whole,
        seconds_of_parts=parts,
        cpu_seconds=cpu,
        cpu_seconds_of_runs=runs,
        of_parts=whole / parts,
        of_runs=cpu / runs,
    )


if __name__ == "__main__":
    main()
