"""Does it matter whose inputs a backend is told of? Perplexity and time on dense and sequential statistics.

    python benchmarks/dense_statistics.py --calib validation.txt --data test.txt [--only wanda] > rows.jsonl

The texts are WikiText-2 validation and test. Protocol as in `perplexity.py`: the first 12 windows of 512
tokens to calibrate and measure, the first 20 windows of 512 to evaluate, float32. One row for each method and
source, the sources of a method one after the other; `cpu_seconds` are of the whole way from the dense model
to the compressed one (measuring, allocating, compressing), in all threads. With `--perturb SEED` every weight
is changed by a millionth of itself first: the spread over seeds is what a figure owes to chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any, get_args

from perplexity import parser_for, perturb_, protocol
from rows import print_row

from owl_compress import Recipe, Session, load, make_plan, perplexity
from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.documents.provenance import StatisticsSource
from owl_compress.pipeline.execution import compress_

_UNIFORM = {"allocator": "uniform"}
_OWL = {"allocator": "owl", "metric": "lod@10", "lam": 0.08}


@dataclass(frozen=True)
class Case:
    """One method, under the name that it has in the rows of `perplexity.py`."""

    name: str
    options: dict[str, Any]


def _cases() -> list[Case]:
    wanda: list[tuple[str, dict[str, Any]]] = [
        ("S=0.5 uniform", {"sparsity": 0.5, **_UNIFORM}),
        ("S=0.6 uniform", {"sparsity": 0.6, **_UNIFORM}),
        ("S=0.7 uniform", {"sparsity": 0.7, **_UNIFORM}),
        ("S=0.6 owl lod@10 lam=0.08", {"sparsity": 0.6, **_OWL}),
        ("S=0.7 owl lod@10 lam=0.08", {"sparsity": 0.7, **_OWL}),
        ("uniform 3:8", {"nm": "3:8", **_UNIFORM}),
        ("uniform 2:8", {"nm": "2:8", **_UNIFORM}),
    ]
    width = Case(
        "structured 0.4 uniform, no repair", {"backend": "structured", "prune_ratio": 0.4, **_UNIFORM}
    )
    return [*(Case(f"wanda {name}", {"backend": "wanda", **options}) for name, options in wanda), width]


def main() -> None:
    """Load the model once, and give every method the same dense weights, twice."""
    parser = parser_for(__doc__)
    parser.add_argument("--source", choices=get_args(StatisticsSource), help="only this one")
    arguments = parser.parse_args()
    shared = protocol(arguments)
    sources = [arguments.source] if arguments.source else get_args(StatisticsSource)
    loaded = load("builtin")
    if arguments.perturb:
        perturb_(loaded.model, arguments.perturb)
    for case in _cases():
        if arguments.only in case.name:
            _compare(case, shared, sources, loaded, arguments.perturb)


def _compare(
    case: Case, shared: dict[str, Any], sources: Sequence[str], loaded: LoadedModel, perturb: int
) -> None:
    """Print the rows of one method."""
    for source in sources:
        dense = Session.open(Recipe.from_options({**shared, **case.options, "statistics": source}), loaded)
        session = dense.on_a_copy()
        start, cpu_start = perf_counter(), process_time()
        _, plan = make_plan(session)
        result = compress_(session, plan)
        seconds, cpu_seconds = perf_counter() - start, process_time() - cpu_start
        found = perplexity(session.loaded.model, dense.held_out_windows)
        print_row(
            "dense_statistics",
            name=case.name,
            statistics=result.statistics,
            perplexity=found.perplexity,
            perturb=perturb,
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            asked=result.totals.asked,
            achieved=result.totals.achieved,
        )


if __name__ == "__main__":
    main()
