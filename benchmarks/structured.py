"""What does removing heads and channels cost? One row per ratio, allocator, importance and repair.

    python benchmarks/structured.py --calib validation.txt --data test.txt [--only 0.4] > rows.jsonl

The rows of the paper's Table 11 (OWL with LLM-Pruner, 20 to 80 %), on the embedded model. The protocol is in
`cases`; importance taylor takes gradients on the first 4 calibration windows. OWL's metric and lam are chosen
for each ratio with importance wanda, once without repair and once with it, and kept for taylor. The last rows
take 20 % of one kind of sublayer and leave the other alone: which of them is it that hurts?
"""

from collections.abc import Iterator
from itertools import product

from cases import Case, run

_METRICS = ("lod@5", "lod@10")
# By whether there is a repair: with it small departures from uniform can be told from none.
_TUNING = {
    False: {"metric": _METRICS, "lam": (0.08, 0.15)},
    True: {"metric": _METRICS, "lam": (0.03, 0.08, 0.15)},
}


def cases() -> Iterator[Case]:
    """Every ratio with every allocator, importance and repair."""
    wanda, taylor = {"importance": "wanda"}, {"importance": "taylor", "gradient_samples": 4}
    for ratio, allocators in product((0.2, 0.4, 0.6, 0.8), (("uniform", "owl"), ("linear-depth",))):
        for importance, repair, allocator in product((wanda, taylor), (False, True), allocators):
            budget = {"prune_ratio": ratio}
            repaired = {"repair": True} if repair else {}
            options = {**importance, **repaired}
            if allocator == "owl":
                # At 20 % the larger lam asks for more than whole blocks: clipped at 1, on the same mean.
                tuned_as = {"options": {**wanda, **repaired, "high": 1.0}}
                yield Case(
                    budget, "structured", allocator, {**options, "high": 1.0}, _TUNING[repair], tuned_as
                )
            else:
                yield Case(budget, "structured", allocator, options)
    for parts, repair in product(("mlp", "attention"), ({}, {"repair": True})):
        yield Case({"prune_ratio": 0.2}, "structured", "uniform", {**wanda, "parts": parts, **repair})


if __name__ == "__main__":
    run("structured", __doc__, cases())
