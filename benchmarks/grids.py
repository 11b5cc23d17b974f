"""Are mixed N:M and mixed bits better than uniform at an equal budget? One row per budget and allocator.

    python benchmarks/grids.py --calib validation.txt --data test.txt [--only 3:8] > rows.jsonl

The protocol is in `cases`. The row of a tuned allocator says what was chosen from what. For gptq the choice
is made with rtn, which costs a tenth; but not between 2 and 4 bits, where rtn leaves no model to choose by.
"""

from collections.abc import Iterator
from itertools import product

from cases import Case, run

_METRICS = ("lod@5", "lod@10")
_ALL_METRICS = ("lod@3", "lod@5", "lod@7", "lod@10")
_GROUPS = {"group_size": 64}


def cases() -> Iterator[Case]:
    """The table of README.md."""
    for nm in ("4:8", "3:8", "2:8"):
        for allocator in ("uniform", "linear-depth", "random"):
            yield Case({"nm": nm}, "wanda", allocator, {})
        yield Case({"nm": nm}, "wanda", "owl", {}, {"metric": _ALL_METRICS, "lam": (0.5, 1.0, 2.0)})
    for bits, choices, has_uniform in ((3.5, "3,4", False), (3.0, "2,3,4", True), (3.0, "2,4", False)):
        budget = {"bits": bits, "bit_choices": choices}
        for backend in ("rtn", "gptq"):
            if has_uniform:
                yield Case(budget, backend, "uniform", _GROUPS)
            for seed in range(3):
                yield Case(budget, backend, "random", {**_GROUPS, "seed": seed})
            yield Case(budget, backend, "weight-l1", _GROUPS)
            two_or_four = choices == "2,4"
            metrics = _ALL_METRICS if two_or_four else _METRICS
            tuned_as = {} if two_or_four else {"backend": "rtn"}
            # Half of the blocks get 4 bits, whatever lam says: one value will do.
            proportional = {"metric": metrics, "lam": (0.5,) if two_or_four else (0.5, 1.0)}
            yield Case(budget, backend, "owl", _GROUPS, proportional, tuned_as)
            optimal = {**_GROUPS, "solver": "optimal"}
            yield Case(budget, backend, "owl", optimal, {"metric": metrics}, tuned_as)
    for bits, backend in product((4, 3, 2), ("rtn", "gptq")):
        yield Case({"bits": bits, "bit_choices": str(bits)}, backend, "uniform", _GROUPS)


if __name__ == "__main__":
    run("grids", __doc__, cases())
