"""Quantized weights: the integer codes of a linear, kept beside the weight that they stand for."""

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn

_CODES = "owl_compress_codes"
"""Attribute of a module that holds its `QuantizedWeight`."""

_FIELD = "codes."
"""What the name of a part begins with that holds a field of the packed codes; its number follows."""


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
class PackedCodes:
    """Codes int8 of any shape, in as much memory as they take: three bits each, say, not eight.

    A code of `bits` bits is cut into fields of 1, 2, 4 and 8 bits, as `bits` is written in binary. Of each
    field 8 / width share a byte of their tensor in `fields`, uint8: the first of them lie next to each other.
    """

    fields: tuple[Tensor, ...]
    shape: torch.Size
    bits: int

    @classmethod
    def of(cls, codes: Tensor, bits: int) -> "PackedCodes":
        """The codes, each in `code_range(bits)`, packed where they are."""
        raised = (codes - code_range(bits)[0]).to(torch.uint8).flatten()
        fields = []
        for first, width in _fields(bits):
            field = (raised >> first) & (2**width - 1)
            per_byte = 8 // width
            field = torch.nn.functional.pad(field, (0, -len(field) % per_byte))
            shares = field.reshape(per_byte, -1)  # [codes] -> [codes of a byte, bytes]
            packed = shares[0].clone()
            for place in range(1, per_byte):
                packed |= shares[place] << (place * width)
            fields.append(packed)
        return cls(tuple(fields), codes.shape, bits)

    def unpacked(self) -> Tensor:
        """The codes again, int8."""
        raised = torch.zeros(self.shape, dtype=torch.uint8, device=self.fields[0].device).flatten()
        for (first, width), packed in zip(_fields(self.bits), self.fields, strict=True):
            shares = [(packed >> place) & (2**width - 1) for place in range(0, 8, width)]
            raised |= torch.cat(shares)[: len(raised)] << first
        return (raised.to(torch.int16) + code_range(self.bits)[0]).to(torch.int8).reshape(self.shape)

    def on_host(self) -> "PackedCodes":
        """The same in host memory."""
        return PackedCodes(tuple(field.cpu() for field in self.fields), self.shape, self.bits)


def _fields(bits: int) -> list[tuple[int, int]]:
    """First bit and width of each field of a code: 2 and 1 bits of three, 4 of four."""
    widths = [width for width in (1, 2, 4, 8) if bits & width]
    return [(sum(widths[:place]), width) for place, width in enumerate(widths)]


class QuantizedWeight:
    """A weight of shape [out, in] as (code - zero point) * scale, one scale and zero point per group.

    Nobody changes one. Its codes are held packed, since those of a whole model are held beside its weights.

    Args:
        codes: int8 [out, in], each in `code_range(bits)`.
        scales: [out, groups], not zero, in the data type in which they are stored.
        zero_points: int8 [out, groups], or None where they are all zero (symmetric).
        bits: that a code takes.
        group_size: consecutive inputs that share a scale; None for all.

    Raises:
        ValueError: a code needs more than `bits` bits.
    """

    def __init__(
        self, codes: Tensor, scales: Tensor, zero_points: Tensor | None, bits: int, group_size: int | None
    ) -> None:
        low, high = code_range(bits)
        lowest, highest = torch.aminmax(codes)
        if int(lowest) < low or int(highest) > high:
            raise ValueError(f"codes from {int(lowest)} to {int(highest)} do not fit {bits} bits")
        self._packed = PackedCodes.of(codes, bits)
        self.scales, self.zero_points = scales, zero_points
        self.bits, self.group_size = bits, group_size

    @classmethod
    def of_parts(
        cls, parts: Mapping[str, Tensor], shape: tuple[int, int], bits: int, group_size: int | None
    ) -> "QuantizedWeight":
        """One that was taken apart, of a weight of `shape` (out, in); nothing is copied, nor looked at.

        Raises:
            KeyError: a part is missing.
        """
        fields = tuple(parts[f"{_FIELD}{number}"] for number in range(len(_fields(bits))))
        same = cls.__new__(cls)
        same._packed = PackedCodes(fields, torch.Size(shape), bits)  # noqa: SLF001 - its own
        same.scales, same.zero_points = parts["scales"], parts.get("zero_points")
        same.bits, same.group_size = bits, group_size
        return same

    @property
    def parts(self) -> dict[str, Tensor]:
        """Its tensors by name, as they lie in memory: codes stay packed."""
        found = {f"{_FIELD}{number}": field for number, field in enumerate(self._packed.fields)}
        found["scales"] = self.scales
        return found if self.zero_points is None else found | {"zero_points": self.zero_points}

    @property
    def codes(self) -> Tensor:
        """The codes, int8 [out, in], unpacked each time."""
        return self._packed.unpacked()

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, columns = self._packed.shape
        return rows, columns

    @property
    def code_format(self) -> CodeFormat:
        """How the codes are grouped."""
        return CodeFormat(self.group_size, symmetric=self.zero_points is None)

    @property
    def n_bits(self) -> int:
        """Bits that codes, scales and zero points take."""
        return self.code_format.n_bits(self.shape, self.bits, 8 * self.scales.element_size())

    def dequantised(self) -> Tensor:
        """The weight that the codes stand for, shape [out, in], in the data type of the scales.

        One product per weight in that very type, as compressed-tensors does it: the same bits come out.
        """
        rows, columns = self.shape
        # [out, in] -> [out, groups, size]
        codes = self.codes.reshape(rows, self.scales.shape[1], -1).to(self.scales.dtype)
        if self.zero_points is not None:
            codes = codes - self.zero_points[:, :, None].to(self.scales.dtype)
        return (codes * self.scales[:, :, None]).reshape(rows, columns)

    def on_host(self) -> "QuantizedWeight":
        """The same in host memory."""
        same = copy(self)
        same._packed = self._packed.on_host()  # noqa: SLF001 - its own
        same.scales = self.scales.cpu()
        same.zero_points = None if self.zero_points is None else self.zero_points.cpu()
        return same


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
