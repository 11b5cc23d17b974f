"""Low-rank changes of weights that respect a mask, so that they can be merged into what they change."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from owl_compress.recovery.parameters import kept_in


class MaskedLowRank(nn.Module):
    """W + M * (scale * B A): what LoRA adds, zero wherever W is.

    W [rows, columns] and M as the module stores them, A [rank, columns], B [rows, rank]; B begins at zero, so
    that nothing is changed at first (arXiv 2106.09685, with the mask of arXiv 2312.15230, section 3.2). What
    is trained is thereby what is merged; a change trained without the mask loses most of its effect when it
    is cut back to it.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        drawn = torch.rand((rank, columns), generator=generator) * 2 - 1
        self.a = nn.Parameter((drawn / math.sqrt(columns)).to(weight.device))  # as peft begins
        self.b = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        self.scale = scale
        self.register_buffer("kept", kept_in(weight), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight, in the type of the one that is given."""
        change = self.scale * (self.b @ self.a)
        kept: Any = self.kept
        return weight + (change if kept is None else change * kept).to(weight.dtype)


def change_by_low_rank_(
    module: nn.Module, rank: int, scale: float, generator: torch.Generator
) -> MaskedLowRank:
    """Have the weight of `module` be what it is and a masked low-rank change."""
    change = MaskedLowRank(module.get_parameter("weight").data, rank, scale, generator)
    parametrize.register_parametrization(module, "weight", change)
    return change


def changed_weight(module: nn.Module) -> Tensor:
    """What the weight of a `module` has become."""
    weight: Any = module.weight
    return weight.detach().clone()  # type: ignore[no-any-return]
