"""First-order importance of weights: w * dL/dw, summed along rows and columns, one block at a time."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from owl_compress.calibration import TokenWindows
from owl_compress.families import ModelStructure
from owl_compress.progress import SILENT, Progress


@dataclass(frozen=True)
class Salience:
    """Sums of w_ij * dL/dw_ij over one linear's weight [out, in], float64 on the host.

    `out_element` [out] and `in_element` [in] sum absolute values, `out_vector` and `in_vector` signed ones.
    """

    out_element: Tensor
    in_element: Tensor
    out_vector: Tensor
    in_vector: Tensor


def measure_salience(
    model: nn.Module,
    structure: ModelStructure,
    calibration: TokenWindows,
    *,
    device: torch.device | None = None,
    batch_size: int = 1,
    progress: Progress = SILENT,
) -> Mapping[str, Salience]:
    """Salience of every linear of `model` by name, from the causal loss on `calibration`; see LLM-Pruner."""
    raise NotImplementedError
