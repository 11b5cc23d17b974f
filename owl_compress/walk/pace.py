"""How fast a model goes, told from one of its blocks on one batch."""

from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn

from owl_compress.models.structure import ModelStructure
from owl_compress.walk.blocks import BlockWalk
from owl_compress.walk.widening import widened, wider_dtype


@dataclass(frozen=True)
class Pace:
    """Seconds that a block of so many weights took to arrive, and to run once on so many tokens."""

    arriving: float
    running: float
    n_weights: int
    n_tokens: int

    def seconds(self, n_weights: int, n_tokens: int) -> float:
        """What it takes to run so many weights on so many tokens once; the next block arrives meanwhile."""
        blocks, batches = n_weights / self.n_weights, n_tokens / self.n_tokens
        return blocks * max(self.arriving, self.running * batches)


def pace_of(model: nn.Module, structure: ModelStructure, batch: Tensor, device: torch.device) -> Pace:
    """Have the first block with linears arrive and run on `batch`, [sequences, seq_len]: the better of two.

    Raises:
        RequestError: it cannot be read, or not be run by itself.
    """
    index = next(number for number, site in enumerate(structure.blocks) if site.linears)
    walk = BlockWalk(model, structure, [batch], device=device)
    with walk.prepared():
        start = _now(device)
        with walk.visit(index) as visit:
            arriving, module = _now(device) - start, visit.site.module
            dtype, seconds = wider_dtype(module, device), [0.0, 0.0]
            with widened(module, dtype):
                for time in range(len(seconds)):
                    start = _now(device)
                    walk.run_block(index, 0, module=module, dtype=dtype)
                    seconds[time] = _now(device) - start
    return Pace(arriving, min(seconds), visit.site.n_weights, batch.numel())


def _now(device: torch.device) -> float:
    """Seconds by the clock, once a device has done all it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()
