"""Quantized weights: the integer codes of a linear, kept beside the weight that they stand for."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn

_CODES = "owl_compress_codes"
"""Attribute of a module that holds its `QuantizedWeight`."""


def code_range(bits: int) -> tuple[int, int]:
    """Lowest and highest integer code of `bits` bits, two's complement: (-4, 3) for three."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


@dataclass(frozen=True)
class CodeFormat:
    """What shares a scale: `group_size` consecutive inputs of one output, or all of them (None)."""

    group_size: int | None
    symmetric: bool

    def n_groups(self, n_inputs: int) -> int:
        """Groups in one row."""
        return 1 if self.group_size is None else ceil(n_inputs / self.group_size)

    def n_bits(self, shape: tuple[int, int], bits: int, scale_bits: int) -> int:
        """Bits that codes, scales and zero points of a weight of `shape` (out, in) take."""
        rows, columns = shape
        of_group = scale_bits + (0 if self.symmetric else bits)
        return rows * (columns * bits + self.n_groups(columns) * of_group)


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight of shape [out, in] as (code - zero point) * scale, one scale and zero point per group.

    `codes` int8 [out, in], each in `code_range(bits)`; `scales` [out, groups], positive, in the data type in
    which they are stored; `zero_points` int8 [out, groups], or None where they are all zero (symmetric).

    Raises:
        ValueError: a code needs more than `bits` bits.
    """

    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None
    bits: int
    group_size: int | None

    def __post_init__(self) -> None:
        """Make sure that `bits` is what the codes really take."""
        low, high = code_range(self.bits)
        lowest, highest = torch.aminmax(self.codes)
        if int(lowest) < low or int(highest) > high:
            raise ValueError(f"codes from {int(lowest)} to {int(highest)} do not fit {self.bits} bits")

    @property
    def code_format(self) -> CodeFormat:
        """How the codes are grouped."""
        return CodeFormat(self.group_size, symmetric=self.zero_points is None)

    @property
    def n_bits(self) -> int:
        """Bits that codes, scales and zero points take."""
        rows, columns = self.codes.shape
        return self.code_format.n_bits((rows, columns), self.bits, 8 * self.scales.element_size())

    def dequantised(self) -> Tensor:
        """The weight that the codes stand for, shape [out, in], in the data type of the scales.

        One product per weight in that very type, as compressed-tensors does it: the same bits come out.
        """
        rows, columns = self.codes.shape
        # [out, in] -> [out, groups, size]
        codes = self.codes.reshape(rows, self.scales.shape[1], -1).to(self.scales.dtype)
        if self.zero_points is not None:
            codes = codes - self.zero_points[:, :, None].to(self.scales.dtype)
        return (codes * self.scales[:, :, None]).reshape(rows, columns)

    def on_host(self) -> "QuantizedWeight":
        """The same in host memory."""
        zero_points = None if self.zero_points is None else self.zero_points.cpu()
        return QuantizedWeight(self.codes.cpu(), self.scales.cpu(), zero_points, self.bits, self.group_size)


def keep_codes_(module: nn.Module, codes: QuantizedWeight | None) -> None:
    """Note on `module` the codes that its weight stands for, or that it has none (any more)."""
    if codes is not None:
        setattr(module, _CODES, codes.on_host())
    elif hasattr(module, _CODES):
        delattr(module, _CODES)


def coded_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, QuantizedWeight]]:
    """Name, module and codes of every linear of `model` that was quantized here."""
    for name, module in model.named_modules():
        codes = getattr(module, _CODES, None)
        if isinstance(codes, QuantizedWeight):
            yield name, module, codes


def stored_bits(model: nn.Module) -> int:
    """Bits of all parameters, a quantized weight counted by its codes, scales and zero points."""
    coded = {id(module.get_parameter("weight")): codes.n_bits for _, module, codes in coded_modules(model)}
    return sum(
        coded.get(id(parameter), 8 * parameter.numel() * parameter.element_size())
        for parameter in model.parameters()
    )
