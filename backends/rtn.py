"""Round to nearest: every weight by itself. Needs no calibration text."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar

from owl_compress.backends.quantizer import GridRule, bits_of, check_block, check_group_size, round_to_nearest
from owl_compress.compression.tasks import BlockTask, LinearOutcome, LinearTask
from owl_compress.documents.units import Unit
from owl_compress.forms.codes import CodeFormat
from owl_compress.options import option


@dataclass(frozen=True)
class Rtn:
    """Round every weight to the nearest code, with one scale for some consecutive inputs of an output.

    `symmetric` grids have no zero point; `mse` searches the scale of least squared error instead of the one
    that reaches the largest weight.
    """

    group_size: int | None = option(
        64, "Inputs that share a scale: 64, 128, or none for one scale per output.", stated=True, at_least=1
    )
    symmetric: bool = option(True, "Scales with a zero point.", name="asymmetric")
    mse: bool = option(False, "Search scales of least squared error.")

    name: ClassVar[str] = "rtn"
    unit: ClassVar[Unit] = Unit.BITS
    solves_groups_apart: ClassVar[bool] = True
    statistic: ClassVar[None] = None
    survey: ClassVar[None] = None
    error_measure: ClassVar[str] = "squared weight error over squared weights"

    def __post_init__(self) -> None:
        """Refuse options that cannot be meant."""
        check_group_size(self.group_size)

    @property
    def code_format(self) -> CodeFormat:
        """How the codes are grouped."""
        return CodeFormat(self.group_size, self.symmetric)

    def compress_block_(self, task: BlockTask) -> Sequence[LinearOutcome]:
        """Quantize the linears of `task` in place."""
        check_block(task, self.code_format)
        return [self._quantize_(linear) for group in task.groups for linear in group.linears]

    def _quantize_(self, task: LinearTask) -> LinearOutcome:
        start = perf_counter()
        weight = task.site.weight
        rule = GridRule(self.symmetric, self.mse, weight.dtype)
        quantized = round_to_nearest(weight.float(), bits_of(task), rule, self.group_size)
        new = quantized.dequantised()
        energy = float(weight.double().square().sum())
        lost = float((weight.double() - new.double()).square_().sum())
        weight.copy_(new)
        return LinearOutcome(
            task.site.name,
            achieved=float(quantized.bits),
            relative_error=lost / energy if energy else 0.0,
            seconds=perf_counter() - start,
            quantized=quantized,
        )
