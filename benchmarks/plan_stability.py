"""How many sequences fix an OWL plan? The largest change of any block's budget against all sequences.

    python benchmarks/plan_stability.py --calib validation.txt [--samples 128] [--seq-len 512] > rows.jsonl

One measurement per number of sequences, each on the first of the same random windows.
"""

import argparse

from rows import print_row

from owl_compress import allocate, calibrate, load, measure


def main() -> None:
    """Measure on 1, 2, 4, ... sequences and compare the plans with the one of all sequences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    loaded = load("builtin")
    for seed in range(arguments.seeds):
        windows = calibrate(
            loaded, arguments.calib, samples=arguments.samples, seq_len=arguments.seq_len, seed=seed
        )
        counts = [2**k for k in range(arguments.samples.bit_length()) if 2**k < arguments.samples]
        reports = {n: measure(loaded.model, windows.first(n)) for n in [*counts, arguments.samples]}
        for metric in ("lod@5", "lod@10"):
            budgets = {
                n: [block.value for block in allocate(report, "owl", sparsity=0.7, metric=metric).per_block]
                for n, report in reports.items()
            }
            for n in counts:
                pairs = zip(budgets[n], budgets[arguments.samples], strict=True)
                print_row(
                    "plan_stability",
                    metric=metric,
                    seed=seed,
                    sequences=n,
                    against=arguments.samples,
                    seq_len=arguments.seq_len,
                    largest_change_of_density=max(abs(few - all_) for few, all_ in pairs),
                )


if __name__ == "__main__":
    main()
