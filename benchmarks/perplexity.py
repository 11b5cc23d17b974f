"""How good are the checkpoints? Perplexity of the embedded model, dense and compressed, one row per method.

    python benchmarks/perplexity.py --calib validation.txt --data test.txt [--only wanda] > rows.jsonl

The texts are WikiText-2 validation and test. Protocol: the first 12 windows of 512 tokens to calibrate and
measure, the first 20 windows of 512 to evaluate, float32. `expected` are figures measured with separate code.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from rows import print_row

from owl_compress.pipeline.line import Line
from owl_compress.recipe import Recipe

_EXPECTED = json.loads((Path(__file__).parent / "expected_smollm2.json").read_text())


@dataclass(frozen=True)
class Case:
    """One method, and the name of its expected figure."""

    name: str
    options: dict[str, Any]


def _cases() -> list[Case]:
    def owl(metric: str, lam: float) -> dict[str, Any]:
        return {"allocator": "owl", "metric": metric, "lam": lam}

    uniform = {"allocator": "uniform"}
    cases = [
        Case(f"{backend} S={sparsity} uniform", {"backend": backend, "sparsity": sparsity, **uniform})
        for backend, sparsities in (
            ("wanda", (0.5, 0.6, 0.7)),
            ("sparsegpt", (0.5, 0.6, 0.7)),
            ("magnitude", (0.5,)),
        )
        for sparsity in sparsities
    ]
    owls = [
        ("wanda", 0.5, "lod@10", 0.08),
        ("wanda", 0.6, "lod@10", 0.08),
        ("wanda", 0.7, "lod@10", 0.08),
        ("wanda", 0.7, "lod@5", 0.2),
        ("sparsegpt", 0.6, "lod@10", 0.08),
        ("sparsegpt", 0.7, "lod@10", 0.08),
        ("wanda", 0.7, "lod@10", 0.15),
        ("wanda", 0.7, "lod@7", 0.08),
        ("wanda", 0.7, "lod@7", 0.05),
        ("wanda", 0.7, "lod@10", 0.05),
        ("wanda", 0.7, "lod@10", 0.2),
        ("wanda", 0.6, "lod@10", 0.15),
    ]
    cases += [
        Case(
            f"{backend} S={s} owl {metric} lam={lam}", {"backend": backend, "sparsity": s, **owl(metric, lam)}
        )
        for backend, s, metric, lam in owls
    ]
    cases += [
        Case(f"wanda uniform {nm}", {"backend": "wanda", "nm": nm, **uniform}) for nm in ("4:8", "3:8", "2:8")
    ]
    return cases


def main() -> None:
    """Load the model once, and give every method the same dense weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--only", default="", help="only methods whose name contains this")
    arguments = parser.parse_args()
    shared = {
        "model": "builtin",
        "calib": arguments.calib,
        "data": arguments.data,
        "sampling": "first",
        "samples": 12,
        "measure_samples": 12,
        "seq_len": 512,
        "max_windows": 20,
    }
    cases = [case for case in _cases() if arguments.only in case.name]
    loaded = Line(Recipe.from_options({**shared, **cases[0].options})).load()
    dense = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    for index, case in enumerate(cases):
        line = Line(Recipe.from_options({**shared, **case.options}))
        held_out = line.held_out(loaded)
        if held_out is None:
            raise ValueError("the recipe names no evaluation text")
        if index == 0:
            report_perplexity("dense", line.evaluate(loaded, held_out).perplexity, seconds=0.0)
        calibration = line.windows(loaded)
        start = perf_counter()
        _, plan = line.plan(loaded, calibration)
        result = line.compress_(loaded, plan, calibration)
        seconds = perf_counter() - start
        perplexity = line.evaluate(loaded, held_out).perplexity
        report_perplexity(
            case.name, perplexity, seconds=seconds, asked=result.totals.asked, achieved=result.totals.achieved
        )
        loaded.model.load_state_dict(dense)


def report_perplexity(name: str, perplexity: float, **more: float) -> None:
    """Print the row, with its distance from the expected figure where there is one."""
    expected = _EXPECTED.get(name)
    distance = perplexity / expected - 1 if expected else None
    print_row("perplexity", name=name, perplexity=perplexity, expected=expected, relative=distance, **more)


if __name__ == "__main__":
    main()
