"""SparseGPT: prune by saliency under the Hessian, and let the kept weights make up for the loss."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import ClassVar

import torch
from torch import Tensor

from owl_compress.backends.model_wide import ModelWideSurvey
from owl_compress.backends.selection import (
    Scope,
    bits_of_mask,
    keep_mask,
    keep_mask_of_groups,
    kept_per_group,
)
from owl_compress.backends.solver import (
    SOLVER_BLOCK,
    check_damping,
    damping_fallbacks,
    factorise,
    gram_of,
    relative_error,
    sweep_,
)
from owl_compress.compression.tasks import BlockTask, GroupTask, LinearOutcome, LinearTask, density
from owl_compress.documents.units import Grid, KeptOfGrid, Unit
from owl_compress.options import option
from owl_compress.walk.input_statistics import Gram, Statistic


@dataclass(frozen=True)
class SparseGPT:
    """Saliency W_ij^2 / U_jj^2, compared within 128 columns of a linear unless told otherwise.

    Source: arXiv 2301.00774. The published code prunes one weight more than asked per 128 columns; here the
    counts of the column blocks add up to floor(density * numel) exactly. Inputs that were always zero lose
    their weights first, but keep them where the budget allows (the published code zeroes them beforehand).
    """

    scope: Scope = option(Scope.LINEAR, "Among which weights the least important are sought.")
    damping: float = option(0.01, "Share of the mean diagonal that is added to the Hessian's.", at_least=0)

    name: ClassVar[str] = "sparsegpt"
    unit: ClassVar[Unit] = Unit.DENSITY
    solves_groups_apart: ClassVar[bool] = True
    statistic: ClassVar[type[Statistic]] = Gram
    error_measure: ClassVar[str] = "squared output error over squared output, under the damped Hessian"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scope", Scope(self.scope))  # options arrive as plain text
        check_damping(self.damping)

    @property
    def survey(self) -> ModelWideSurvey | None:
        """A model-wide comparison, in scope MODEL."""
        return ModelWideSurvey(self, self.statistic) if self.scope is Scope.MODEL else None

    def column_scale(self, group: GroupTask) -> Tensor:
        """1 / U_jj of every input, shape [in]: the root of the saliency of a weight of one."""
        gram, name = gram_of(group.statistic), group.linears[0].site.name
        factor = group.once("factor", lambda: factorise(gram.matrix, self.damping, name))
        return factor.upper.diagonal().reciprocal().masked_fill(factor.dead, 0.0)

    def compress_block_(self, task: BlockTask) -> Sequence[LinearOutcome]:
        """Prune and update the linears of `task` in place."""
        return [outcome for group in task.groups for outcome in self._compress_group_(group, task.grid)]

    def _compress_group_(self, group: GroupTask, grid: Grid | None) -> list[LinearOutcome]:
        start = perf_counter()
        gram, name = gram_of(group.statistic), group.linears[0].site.name
        rule = _rule(group.linears, grid, self.scope)
        factor = group.once("factor", lambda: factorise(gram.matrix, self.damping, name))
        rule.dead = factor.dead
        # All linears of the group side by side: [in, out of the first + out of the second + ...].
        weight_t = torch.cat([linear.site.weight.float().t() for linear in group.linears], dim=1)
        energy = gram.output_energy(weight_t)
        squared_error = sweep_(weight_t, factor, rule)
        widths = [linear.site.shape[0] for linear in group.linears]
        parts = zip(
            group.linears,
            weight_t.split_with_sizes(widths, dim=1),
            squared_error.split_with_sizes(widths),
            energy.split_with_sizes(widths),
            strict=True,
        )
        outcomes = []
        for linear, part, errors, energies in parts:
            error = relative_error(errors, energies, linear.site.name)
            linear.site.weight.copy_(part.t())
            outcomes.append(
                LinearOutcome(
                    linear.site.name,
                    achieved=density(linear.site.weight),
                    relative_error=error,
                    seconds=(perf_counter() - start) * linear.site.n_weights / weight_t.numel(),
                    fallbacks=damping_fallbacks(factor, linear.site.name),
                )
            )
        return outcomes


def _rule(linears: Sequence[LinearTask], grid: Grid | None, scope: Scope) -> "_PruneColumns":
    if isinstance(grid, KeptOfGrid):
        kept = [kept_per_group(linear, grid) for linear in linears]
        return _PruneColumns(linears, grid.kept_of, kept, scope)
    return _PruneColumns(linears, SOLVER_BLOCK, None, scope)


@dataclass
class _PruneColumns:
    """The column rule: some columns at a time, choose which weights of each linear go."""

    linears: Sequence[LinearTask]
    columns: int
    kept_of_group: Sequence[int] | None
    scope: Scope
    dead: Tensor = field(init=False)
    _first: int = field(init=False)
    _kept_bits: Tensor = field(init=False)

    def decide(self, first: int, weight_t: Tensor, diagonal: Tensor) -> None:
        """Choose the mask of these columns, shape [columns, out], from their saliencies."""
        scores_t = (weight_t / diagonal[:, None]).abs_()
        scores_t[self.dead[first : first + len(weight_t)]] = 0.0
        widths = [linear.site.shape[0] for linear in self.linears]
        masks = [
            self._mask(index, scores.t().contiguous(), first).t()
            for index, scores in enumerate(scores_t.split_with_sizes(widths, dim=1))
        ]
        self._first = first
        self._kept_bits = bits_of_mask(torch.cat(masks, dim=1), weight_t.element_size())

    def _mask(self, index: int, scores: Tensor, first: int) -> Tensor:
        if self.kept_of_group is not None:
            return keep_mask_of_groups(scores, self.kept_of_group[index], self.columns)
        task = self.linears[index]
        n_inputs = task.site.shape[1]
        last = first + scores.shape[1]
        # Whole counts whose sum over the column blocks is n_kept.
        n_kept = task.n_kept * last // n_inputs - task.n_kept * first // n_inputs
        return keep_mask(scores, n_kept, self.scope)

    def apply(self, column: int, values: Tensor) -> Tensor:
        """The column with the chosen weights set to zero: by their bits, as `zero_outside_` does it."""
        kept = self._kept_bits[column - self._first]
        return (values.view(kept.dtype) & kept).view(values.dtype)
