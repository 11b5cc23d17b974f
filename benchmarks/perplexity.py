"""The protocol of the figures of the embedded model, for benchmarks that change its weights before they run.

The first 12 windows of 512 tokens to calibrate and measure, the first 20 windows of 512 of another text to
evaluate, float32. With `--perturb SEED` every weight is changed by a millionth of itself first: the spread
over seeds is what a figure owes to chance.
"""

import argparse
from typing import Any

import torch
from torch import nn


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


@torch.no_grad()
def perturb_(model: nn.Module, seed: int) -> None:
    """Change every weight by a millionth of itself: how much of a figure is chance?"""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.mul_(1 + 1e-6 * torch.randn(parameter.shape, generator=generator))
