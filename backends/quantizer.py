"""The grid of integer codes: which scale a group of weights gets, and which code each weight becomes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from owl_compress.compression.tasks import BlockTask, LinearTask
from owl_compress.documents.units import BIT_WIDTHS_SHOWN, is_bit_width
from owl_compress.errors import RequestError
from owl_compress.forms.codes import CodeFormat, QuantizedWeight, code_range
from owl_compress.models.state import is_finite

SHRINK_FACTORS = tuple(1 - step / 40 for step in range(1, 29))
"""What the mse search multiplies the range by, besides 1: 0.975 down to 0.3, in steps of 0.025."""


@dataclass(frozen=True)
class GroupGrids:
    """The grids of some groups: code c stands for (c - zero point) * scale.

    `scales` [groups], float32 but exact in the data type in which they will be stored, positive;
    `zero_points` [groups], whole numbers in float32, or None for symmetric grids.
    """

    scales: Tensor
    zero_points: Tensor | None

    def codes_of(self, weight: Tensor, bits: int) -> Tensor:
        """The nearest codes of `weight` [groups, size], whole numbers in float32; ties go to the even one."""
        low, high = code_range(bits)
        codes = torch.round(weight / self.scales[:, None])
        if self.zero_points is not None:
            codes += self.zero_points[:, None]
        return codes.clamp_(low, high)

    def squared_error(self, weight: Tensor, bits: int) -> Tensor:
        """Summed over each group of `weight` [groups, size]; shape [groups]."""
        codes = self.codes_of(weight, bits)
        if self.zero_points is not None:
            codes -= self.zero_points[:, None]
        return codes.mul_(self.scales[:, None]).sub_(weight).square_().sum(dim=1)


@dataclass(frozen=True)
class GridRule:
    """How the grid of a group follows from its weights.

    Symmetric: scale = max|w| / (2^(bits-1) - 1), so that the largest weight of either sign has a code; with
    `all_codes` scale = 2 max|w| / (2^bits - 1), as in GPTQ's code: the step is finer, and a largest weight
    that is positive is cut by half of it. Asymmetric: the 2^bits codes span [min(w, 0), max(w, 0)].
    With `mse` the range is also tried shrunk by `SHRINK_FACTORS`, and that of least squared error is taken;
    GPTQ's code searches likewise, but for the least sum of |error|^2.4 over 80 factors down to 0.2. Scales
    are rounded to `dtype`, in which they are stored, before any code is chosen. Zeros alone get scale 1.
    """

    symmetric: bool
    mse: bool
    dtype: torch.dtype
    all_codes: bool = False

    def fit(self, weight: Tensor, bits: int) -> GroupGrids:
        """The grid of each group of `weight`, shape [groups, size], float32."""
        lowest, highest = weight.amin(dim=1), weight.amax(dim=1)
        best = self._spanning(lowest, highest, bits)
        if not self.mse:
            return best
        least = best.squared_error(weight, bits)
        for factor in SHRINK_FACTORS:
            tried = self._spanning(lowest * factor, highest * factor, bits)
            error = tried.squared_error(weight, bits)
            better = error < least
            least = torch.where(better, error, least)
            best = GroupGrids(
                torch.where(better, tried.scales, best.scales),
                None
                if best.zero_points is None or tried.zero_points is None
                else torch.where(better, tried.zero_points, best.zero_points),
            )
        return best

    def _spanning(self, lowest: Tensor, highest: Tensor, bits: int) -> GroupGrids:
        """The grid over the range from `lowest` to `highest`, each of shape [groups]."""
        low, high = code_range(bits)
        if self.symmetric:
            steps = (high - low) / 2 if self.all_codes else high
            return GroupGrids(self._stored(torch.maximum(-lowest, highest) / steps), None)
        lowest, highest = lowest.clamp_max(0.0), highest.clamp_min(0.0)
        scales = self._stored((highest - lowest) / (high - low))
        return GroupGrids(scales, (low - torch.round(lowest / scales)).clamp_(low, high))

    def _stored(self, scales: Tensor) -> Tensor:
        """`scales` as they will be read back; where nothing is left of one, its codes are zero anyway."""
        rounded = scales.to(self.dtype).float()
        return torch.where(rounded > 0, rounded, torch.ones_like(rounded))


def round_to_nearest(weight: Tensor, bits: int, rule: GridRule, group_size: int | None) -> QuantizedWeight:
    """Every weight becomes the nearest code of its group's grid; `weight` [out, in], float32."""
    rows, columns = weight.shape
    groups = weight.reshape(-1, group_size or columns)  # [out, in] -> [out * groups, size]
    grids = rule.fit(groups, bits)
    zero_points = grids.zero_points
    return QuantizedWeight(
        codes=grids.codes_of(groups, bits).to(torch.int8).reshape(rows, columns),
        scales=grids.scales.to(rule.dtype).reshape(rows, -1),
        zero_points=None if zero_points is None else zero_points.to(torch.int8).reshape(rows, -1),
        bits=bits,
        group_size=group_size,
    )


def bits_of(task: LinearTask) -> int:
    """Bits per weight that `task` asks for.

    Raises:
        RequestError: not a whole number of bits from 2 to 8.
    """
    if not is_bit_width(task.budget):
        raise RequestError(
            f"{task.site.name} has {task.budget:g} bits in the plan: give it {BIT_WIDTHS_SHOWN}"
        )
    return int(task.budget)


def check_group_size(group_size: int | None) -> None:
    """Refuse a group size that cannot be meant.

    Raises:
        RequestError: zero or negative.
    """
    if group_size is not None and group_size < 1:
        raise RequestError(f"group size {group_size} is below 1: give 64, 128, or none for one scale per row")


def check_block(task: BlockTask, code_format: CodeFormat) -> None:
    """Refuse a block that cannot be quantized, before any of it is changed.

    Raises:
        RequestError: naming the linear: groups that do not divide its inputs, NaN or Inf, or half bits.
    """
    size = code_format.group_size
    for linear in (linear for group in task.groups for linear in group.linears):
        bits_of(linear)
        name, n_inputs = linear.site.name, linear.site.shape[1]
        if size is not None and n_inputs % size:
            raise RequestError(
                f"{name} has {n_inputs} inputs, which groups of {size} do not divide: "
                f"choose another --group-size, or none for one scale per row, or --skip {name}"
            )
        if not is_finite(linear.site.weight):
            raise RequestError(f"{name} holds NaN or Inf: check the checkpoint")
