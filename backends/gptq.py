"""GPTQ: round column by column, and let the later columns make up for each error."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar

import torch
from torch import Tensor

from owl_compress.backends.quantizer import GridRule, bits_of, check_block, check_group_size
from owl_compress.backends.solver import (
    SOLVER_BLOCK,
    Factor,
    check_damping,
    damping_fallbacks,
    factorise,
    gram_of,
    relative_error,
    sweep_,
)
from owl_compress.compression.tasks import BlockTask, GroupTask, LinearOutcome, LinearTask
from owl_compress.documents.provenance import StatisticsSource
from owl_compress.documents.units import Unit
from owl_compress.forms.codes import CodeFormat, QuantizedWeight, code_range
from owl_compress.options import option
from owl_compress.walk.input_statistics import Gram, Statistic


@dataclass(frozen=True)
class Gptq:
    """Round column by column, later columns making up for each error (GPTQ, arXiv 2210.17323).

    The scale of a group follows from its weights as updated when the sweep reaches it; one scale per output
    (`group_size` None) from the weights as they were.

    With `group_order` (group-aware reordering, arXiv 2505.14638) the groups are visited by the falling
    largest second moment of their inputs, and the inputs of a group by their own: what matters most is
    rounded while most columns are left to make up for it. Groups stay what they are in the model, consecutive
    inputs, so the checkpoint looks like any other. Without it columns are visited as they lie, as published.

    With `activation_order` all columns are visited by falling second moment, across groups, whose scales then
    follow from the weights as they were (the "static groups" of GPTQ's code, "weight" in
    compressed-tensors). The variant that makes groups of columns in visiting order, which servers refuse, is
    not offered.

    The published code sets the weights of inputs that were always zero to zero; here they are rounded as they
    are, because other text may use them.
    """

    group_size: int | None = option(
        64, "Inputs that share a scale: 64, 128, or none for one scale per output.", stated=True, at_least=1
    )
    symmetric: bool = option(True, "Scales with a zero point.", name="asymmetric")
    mse: bool = option(False, "Search scales of least squared error.")
    activation_order: bool = option(False, "Largest inputs first.")
    group_order: bool = option(
        True, "Visit columns as they lie, as published, not the groups that matter most first."
    )
    damping: float = option(0.01, "Share of the mean diagonal that is added to the Hessian's.", at_least=0)

    name: ClassVar[str] = "gptq"
    unit: ClassVar[Unit] = Unit.BITS
    solves_groups_apart: ClassVar[bool] = True
    statistic: ClassVar[type[Statistic]] = Gram
    survey: ClassVar[None] = None
    error_measure: ClassVar[str] = "squared output error over squared output, under the damped Hessian"

    def __post_init__(self) -> None:
        """Refuse options that cannot be meant."""
        check_group_size(self.group_size)
        check_damping(self.damping)

    def usual_statistics(self, target: float) -> StatisticsSource:  # noqa: ARG002
        """Linears in turn, as the published code's `--true-sequential`: better or the same, and faster."""
        return "true-sequential"

    @property
    def code_format(self) -> CodeFormat:
        """How the codes are grouped."""
        return CodeFormat(self.group_size, self.symmetric)

    def compress_block_(self, task: BlockTask) -> Sequence[LinearOutcome]:
        """Quantize and update the linears of `task` in place."""
        check_block(task, self.code_format)
        return [outcome for group in task.groups for outcome in self._quantize_group_(group)]

    def _quantize_group_(self, group: GroupTask) -> list[LinearOutcome]:
        start = perf_counter()
        gram = gram_of(group.statistic)
        # All linears of the group side by side: [in, out of the first + out of the second + ...].
        weight_t = torch.cat([linear.site.weight.float().t() for linear in group.linears], dim=1)
        energy = gram.output_energy(weight_t)
        order = self._order(gram.matrix)
        columns = _QuantizeColumns(group.linears, self, order)
        if self.activation_order or self.group_size is None:
            columns.fix_grids(weight_t)
        if self.activation_order or self.group_order:
            weight_t = weight_t[order]
        factor = group.once("factor", lambda: self._factor(gram.matrix, order, group.linears[0].site.name))
        squared_error = sweep_(weight_t.contiguous(), factor, columns)
        results = zip(
            group.linears, columns.results(), columns.split(squared_error), columns.split(energy), strict=True
        )
        outcomes = []
        for linear, quantized, errors, energies in results:
            error = relative_error(errors, energies, linear.site.name)
            linear.site.weight.copy_(quantized.dequantised())
            outcomes.append(
                LinearOutcome(
                    linear.site.name,
                    achieved=float(quantized.bits),
                    relative_error=error,
                    seconds=(perf_counter() - start) * linear.site.n_weights / weight_t.numel(),
                    fallbacks=damping_fallbacks(factor, linear.site.name),
                    quantized=quantized,
                )
            )
        return outcomes

    def _factor(self, gram: Tensor, order: Tensor, name: str) -> Factor:
        """Of the Gram matrix with its inputs in the order of the sweep."""
        is_moved = self.activation_order or self.group_order
        return factorise(gram[order][:, order] if is_moved else gram, self.damping, name)

    def _order(self, gram: Tensor) -> Tensor:
        """The inputs in the order in which they are visited, shape [in]."""
        moments = gram.diagonal()
        if self.activation_order or (self.group_order and self.group_size is None):
            return torch.argsort(moments, descending=True, stable=True)
        if not self.group_order:
            return torch.arange(len(gram), device=gram.device)
        size = self.group_size or len(gram)
        grouped = moments.reshape(-1, size)  # [in] -> [groups, size]
        order = torch.arange(len(gram), device=gram.device).reshape(-1, size)
        order = order.gather(1, torch.argsort(grouped, dim=1, descending=True, stable=True))
        return order[torch.argsort(grouped.amax(dim=1), descending=True, stable=True)].flatten()


class _QuantizeColumns:
    """The column rule: a column becomes the nearest codes of its group's grids, a grid of its own per output.

    `order` [in] names the input that each column of the sweep is.
    """

    def __init__(self, linears: Sequence[LinearTask], options: Gptq, order: Tensor) -> None:
        n_inputs, device = len(order), order.device
        self.columns = options.group_size or n_inputs
        self._options, self._order = options, order
        self._bits = [bits_of(linear) for linear in linears]
        self._dtypes = [linear.site.weight.dtype for linear in linears]
        self._widths = [linear.site.shape[0] for linear in linears]
        bounds = torch.tensor([code_range(bits) for bits in self._bits], dtype=torch.float32)
        bounds = bounds.repeat_interleave(torch.tensor(self._widths), dim=0).to(device)  # [out, 2]
        self._lowest, self._highest = bounds[:, 0].contiguous(), bounds[:, 1].contiguous()
        n_outputs, n_groups = sum(self._widths), options.code_format.n_groups(n_inputs)
        self._codes = torch.empty(n_inputs, n_outputs, dtype=torch.int8, device=device)
        self._scales = torch.ones(n_groups, n_outputs, device=device)
        self._zero_points = torch.zeros(n_groups, n_outputs, device=device)
        self._group_of = (order // self.columns).tolist()
        self._is_fixed = False

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """`values` [..., out] linear by linear."""
        return torch.split(values, self._widths, dim=-1)

    def fix_grids(self, weight_t: Tensor) -> None:
        """Fit the grids of all groups to `weight_t` [in, out], in the model's order, once and for all."""
        for group, rows in enumerate(torch.split(weight_t, self.columns)):
            self._fit(group, rows)
        self._is_fixed = True
        self.columns = SOLVER_BLOCK  # nothing is left to decide: the sweep may go at its own pace

    def _fit(self, group: int, weight_t: Tensor) -> None:
        """Fit the grids of one group to `weight_t` [size, out]."""
        fitted = []
        for bits, dtype, part in zip(self._bits, self._dtypes, self.split(weight_t), strict=True):
            rule = GridRule(self._options.symmetric, self._options.mse, dtype, all_codes=True)
            fitted.append(rule.fit(part.t().contiguous(), bits))
        self._scales[group] = torch.cat([grids.scales for grids in fitted])
        if not self._options.symmetric:
            self._zero_points[group] = torch.cat(
                [grids.zero_points for grids in fitted if grids.zero_points is not None]
            )

    def decide(self, first: int, weight_t: Tensor, diagonal: Tensor) -> None:  # noqa: ARG002
        """Fit the grids of the group that begins at column `first`, unless all are fixed."""
        if not self._is_fixed:
            self._fit(self._group_of[first], weight_t)

    def apply(self, column: int, values: Tensor) -> Tensor:
        """The nearest values that codes stand for; the codes are noted."""
        group = self._group_of[column]
        scales, zero_points = self._scales[group], self._zero_points[group]
        codes = torch.div(values, scales).round_()
        if self._options.symmetric:
            self._codes[column] = codes.clamp_(self._lowest, self._highest)
        else:
            self._codes[column] = codes.add_(zero_points).clamp_(self._lowest, self._highest)
            codes.sub_(zero_points)
        # Rounded to the type in which the weight is stored, so that later columns see the error that stays.
        return codes.mul_(scales).to(self._dtypes[0]).float()

    def results(self) -> list[QuantizedWeight]:
        """Codes and grids of each linear, inputs in the model's order."""
        codes_t = torch.empty_like(self._codes).index_copy_(0, self._order, self._codes)
        parts = zip(self.split(codes_t), self.split(self._scales), self.split(self._zero_points), strict=True)
        return [
            QuantizedWeight(
                codes=codes.t().contiguous(),
                scales=scales.t().to(dtype).contiguous(),
                zero_points=None if self._options.symmetric else zero_points.t().to(torch.int8).contiguous(),
                bits=bits,
                group_size=self._options.group_size,
            )
            for (codes, scales, zero_points), bits, dtype in zip(parts, self._bits, self._dtypes, strict=True)
        ]
