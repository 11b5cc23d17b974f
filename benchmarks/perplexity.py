"""How good are the checkpoints? Perplexity of the embedded model, dense and compressed, one row per method.

    python benchmarks/perplexity.py --calib validation.txt --data test.txt [--only wanda] > rows.jsonl

The texts are WikiText-2 validation and test. Protocol: the first 12 windows of 512 tokens to calibrate and
measure, the first 20 windows of 512 to evaluate, float32. `expected` are figures measured with separate code.
With `--perturb SEED` every weight is changed by a millionth of itself first: the spread over seeds is what a
figure owes to chance.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rows import print_row
from torch import nn

from owl_compress import Recipe, Session, load, measure, try_out
from owl_compress.pipeline.quality import evaluate
from owl_compress.pipeline.request import Request

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
    others = [
        ("alpha", 0.6, {}),
        ("alpha", 0.6, {"tau": 0.1}),
        ("alpha", 0.7, {}),
        ("alpha", 0.7, {"tau": 0.1}),
        ("lsa", 0.6, {}),
        ("lsa", 0.6, {"lam": 0.05}),
        ("lsa", 0.7, {}),
        ("lsa", 0.7, {"lam": 0.08}),
    ]
    cases += [
        Case(
            " ".join([f"wanda S={s} {allocator}", *(f"{key}={value}" for key, value in options.items())]),
            {"backend": "wanda", "sparsity": s, "allocator": allocator, **options},
        )
        for allocator, s, options in others
    ]
    cases += [
        Case(f"wanda uniform {nm}", {"backend": "wanda", "nm": nm, **uniform}) for nm in ("4:8", "3:8", "2:8")
    ]
    return cases


def parser_for(description: str | None) -> argparse.ArgumentParser:
    """What the command line of a benchmark with this protocol takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--only", default="", help="only methods whose name contains this")
    parser.add_argument(
        "--perturb", type=int, default=0, help="seed of a relative change of 1e-6; 0 for none"
    )
    return parser


def protocol(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the recipes of all methods share."""
    return {
        "model": "builtin",
        "calib": arguments.calib,
        "data": arguments.data,
        "sampling": "first",
        "samples": 12,
        "measure_samples": 12,
        "seq_len": 512,
        "max_windows": 20,
    }


def main() -> None:
    """Load the model once, and give every method the same dense weights."""
    arguments = parser_for(__doc__).parse_args()
    shared = protocol(arguments)
    cases = [case for case in _cases() if arguments.only in case.name]
    requests = [Request.of(Recipe.from_options({**shared, **case.options})) for case in cases]
    loaded = load("builtin")
    if arguments.perturb:
        perturb_(loaded.model, arguments.perturb)
    dense = Session.open(requests[0], loaded)
    if dense.calibration is None:
        raise ValueError("the first case looks at no text")
    _report("dense", evaluate(dense).perplexity, arguments.perturb)
    metrics = dict.fromkeys(metric for request in requests for metric in request.metrics)
    report = measure(loaded.model, dense.calibration, metrics=tuple(metrics))
    for case, request in zip(cases, requests, strict=True):
        trial = try_out(Session.open(request, loaded, dense.calibration), dense.held_out_windows, report)
        totals = trial.result.totals
        counted = {"seconds": trial.seconds, "asked": totals.asked, "achieved": totals.achieved}
        _report(case.name, trial.perplexity.perplexity, arguments.perturb, **counted)


@torch.no_grad()
def perturb_(model: nn.Module, seed: int) -> None:
    """Change every weight by a millionth of itself: how much of a figure is chance?"""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.mul_(1 + 1e-6 * torch.randn(parameter.shape, generator=generator))


def _report(name: str, perplexity: float, perturb: int, **more: float) -> None:
    """Print the row, with its distance from the expected figure where there is one."""
    expected = _EXPECTED.get(name)
    distance = perplexity / expected - 1 if expected else None
    row = {"name": name, "perplexity": perplexity, "expected": expected, "relative": distance}
    print_row("perplexity", **row, perturb=perturb, **more)


if __name__ == "__main__":
    main()
