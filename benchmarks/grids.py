"""Are mixed N:M and mixed bits better than uniform at an equal budget? One row per budget and allocator.

    python benchmarks/grids.py --calib validation.txt --data test.txt [--only 3:8] > rows.jsonl

The protocol is in `cases`. The row of a tuned allocator says what was chosen from what; for gptq the choice
is made with rtn, which costs a tenth.
"""

from collections.abc import Iterator
from itertools import product

from cases import Case, run

_METRICS = ("lod@5", "lod@10")
_GROUPS = {"group_size": 64}


def cases() -> Iterator[Case]:
    """The table of README.md."""
    for nm in ("4:8", "3:8", "2:8"):
        for allocator in ("uniform", "linear-depth", "random"):
            yield Case({"nm": nm}, "wanda", allocator, {})
        yield Case({"nm": nm}, "wanda", "owl", {}, {"metric": _METRICS, "lam": (1.0, 2.0)})
    for bits, choices, has_uniform in ((3.5, "3,4", False), (3.0, "2,3,4", True), (3.0, "2,4", False)):
        budget = {"bits": bits, "bit_choices": choices}
        for backend in ("rtn", "gptq"):
            if has_uniform:
                yield Case(budget, backend, "uniform", _GROUPS)
            for seed in range(3):
                yield Case(budget, backend, "random", {**_GROUPS, "seed": seed})
            yield Case(budget, backend, "weight-l1", _GROUPS)
            proportional = {"metric": _METRICS, "lam": (0.5, 1.0)}
            yield Case(budget, backend, "owl", _GROUPS, proportional, {"backend": "rtn"})
            optimal = {**_GROUPS, "solver": "optimal"}
            yield Case(budget, backend, "owl", optimal, {"metric": _METRICS}, {"backend": "rtn"})
    for bits, backend in product((4, 3, 2), ("rtn", "gptq")):
        yield Case({"bits": bits, "bit_choices": str(bits)}, backend, "uniform", _GROUPS)


if __name__ == "__main__":
    run("grids", __doc__, cases())
