"""How many outliers does pruning leave? Table 2 of the OWL paper (arXiv 2310.05175), on any model.

One row for the dense model, and one for each method.

    python benchmarks/lod.py --calib validation.txt > rows.jsonl
    python benchmarks/lod.py --model huggyllama/llama-7b --calib c4 --samples 128 --seq-len 2048 > rows.jsonl

LOD in percent, mean over the blocks, at M = 5 and M = 7: of the dense model, and of the model pruned to 70 %
by each method with the same share everywhere. An outlier is a score |W_ij| * ‖X_j‖_2 above M times the mean
score of its block. What the mean is of makes the difference: of the pruned model itself (`own_mean`), whose
zeros lower it, or of the dense one (`dense_mean`), the same bar before and after. Inputs are those of the
model in question.
"""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from statistics import mean
from typing import Any

from rows import print_row

from owl_compress import allocate, calibrate, compress_, load
from owl_compress.data.windows import TokenWindows
from owl_compress.importance.estimator import outline
from owl_compress.models.state import parameter_device
from owl_compress.models.structure import find_structure
from owl_compress.walk.blocks import BlockWalk
from owl_compress.walk.input_statistics import SecondMoments
from owl_compress.walk.scores import ScoredWeight, ScorePool

_METHODS = ("magnitude", "wanda", "sparsegpt")


def main() -> None:
    """The dense model, then what each method leaves of it."""
    arguments = _arguments()
    loaded = load(arguments.model, device=arguments.device)
    windows = calibrate(
        loaded,
        arguments.calib,
        samples=arguments.samples,
        seq_len=arguments.seq_len,
        sampling=arguments.sampling,
        bos="first",
    )
    plan = allocate(outline(loaded.model), "uniform", sparsity=arguments.sparsity)
    dense = means(loaded.model, windows)
    shared = {"model": arguments.model, "sparsity": arguments.sparsity}
    print_row("lod", name="dense", **shared, **_in_percent(loaded.model, windows, arguments.m, dense))
    for method in _METHODS:
        pruned = deepcopy(loaded.model)
        compress_(pruned, plan, method, None if method == "magnitude" else windows)
        print_row("lod", name=method, **shared, **_in_percent(pruned, windows, arguments.m, dense))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--calib", required=True)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--sampling", default="first")
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--device")
    parser.add_argument("--m", type=float, nargs="+", default=[5.0, 7.0])
    return parser.parse_args()


def pools(model: Any, windows: TokenWindows) -> Any:
    """The scores of each block, while it is there."""
    walk = BlockWalk(model, find_structure(model), windows.batches(1), device=parameter_device(model))
    with closing(walk.visits()) as visits:
        for visit in visits:
            groups = visit.gather(SecondMoments, advance=True)
            yield ScorePool(
                tuple(
                    ScoredWeight(linear.weight, group.statistic.second_moments.sqrt().float())
                    for group in groups
                    for linear in group.linears
                )
            )


def means(model: Any, windows: TokenWindows) -> list[float]:
    """The mean score of each block."""
    return [pool.mean for pool in pools(model, windows)]


def shares(
    model: Any, windows: TokenWindows, m: Sequence[float], dense: Sequence[float]
) -> Mapping[str, Mapping[str, list[float]]]:
    """Share of outliers in each block, by whose mean it is held against, and by M."""
    found: dict[str, dict[str, list[float]]] = {
        whose: {f"{one:g}": [] for one in m} for whose in ("own_mean", "dense_mean")
    }
    for pool, before in zip(pools(model, windows), dense, strict=True):
        for whose, bar in (("own_mean", pool.mean), ("dense_mean", before)):
            for one in m:
                found[whose][f"{one:g}"].append(pool.count_above(one * bar) / pool.size)
    return found


def _in_percent(
    model: Any, windows: TokenWindows, m: Sequence[float], dense: Sequence[float]
) -> dict[str, Any]:
    found = shares(model, windows, m, dense)
    return {whose: {one: 100 * mean(values) for one, values in by_m.items()} for whose, by_m in found.items()}


if __name__ == "__main__":
    main()
