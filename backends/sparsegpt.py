"""SparseGPT: prune by saliency under the Hessian, and let the kept weights make up for the loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar

import torch
from torch import Tensor

from owl_compress.backend import BlockTask, GroupTask, LinearOutcome, LinearTask, density
from owl_compress.backends.selection import (
    ModelWideSurvey,
    Scope,
    keep_mask,
    keep_mask_of_groups,
    kept_per_group,
)
from owl_compress.backends.solver import (
    SOLVER_BLOCK,
    Factor,
    damping_fallbacks,
    factorise,
    gram_of,
    sweep_,
)
from owl_compress.plan import Grid, KeptOfGrid, Unit
from owl_compress.statistics import Gram, Statistic


@dataclass(frozen=True)
class SparseGPT:
    """Saliency W_ij^2 / U_jj^2, compared within 128 columns of a linear unless told otherwise (arXiv 2301.00774).

    The published code prunes one weight more than asked per 128 columns and none of the remainder; here the
    counts of the column blocks add up to floor(density * numel) exactly.
    """

    scope: Scope = Scope.LINEAR
    damping: float = 0.01

    unit: ClassVar[Unit] = Unit.DENSITY
    statistic: ClassVar[type[Statistic]] = Gram
    error_measure: ClassVar[str] = "squared output error over squared output, under the damped Hessian"

    @property
    def survey(self) -> ModelWideSurvey | None:
        """A model-wide comparison, in scope MODEL."""
        return ModelWideSurvey(self) if self.scope is Scope.MODEL else None

    def column_scale(self, statistic: Statistic | None, n_inputs: int) -> Tensor:  # noqa: ARG002
        """1 / U_jj of every input, shape [in]: the root of the saliency of a weight of one."""
        factor = factorise(gram_of(statistic), self.damping, "the model-wide comparison")
        return factor.upper.diagonal().reciprocal().masked_fill(factor.dead, 0.0)

    def compress_block_(self, task: BlockTask) -> Sequence[LinearOutcome]:
        """Prune and update the linears of `task` in place."""
        return [outcome for group in task.groups for outcome in self._compress_group_(group, task.grid)]

    def _compress_group_(self, group: GroupTask, grid: Grid | None) -> list[LinearOutcome]:
        start = perf_counter()
        gram = gram_of(group.statistic)
        factor = factorise(gram, self.damping, group.linears[0].site.name)
        # All linears of the group side by side: [in, out of the first + out of the second + ...].
        weight_t = torch.cat([linear.site.weight.float().t() for linear in group.linears], dim=1)
        energy = (weight_t * (gram @ weight_t)).sum(dim=0, dtype=torch.float64)  # [out]: ‖w_i X‖^2
        squared_error = sweep_(weight_t, factor, self._rule(group.linears, factor, grid))
        outcomes = []
        widths = [linear.site.shape[0] for linear in group.linears]
        parts = zip(group.linears, *(t.split(widths, dim=-1) for t in (weight_t, squared_error, energy)), strict=True)
        for linear, part, errors, energies in parts:
            linear.site.weight.copy_(part.t())
            share = linear.site.n_weights / weight_t.numel()
            outcomes.append(
                LinearOutcome(
                    linear.site.name,
                    achieved=density(linear.site.weight),
                    relative_error=float(errors.sum() / energies.sum().clamp_min(1e-30)),
                    seconds=(perf_counter() - start) * share,
                    fallbacks=damping_fallbacks(factor, linear.site.name),
                )
            )
        return outcomes

    def _rule(self, linears: Sequence[LinearTask], factor: Factor, grid: Grid | None) -> "_PruneColumns":
        if isinstance(grid, KeptOfGrid):
            kept = [kept_per_group(linear, grid) for linear in linears]
            return _PruneColumns(linears, factor, columns=grid.kept_of, kept_of_group=kept, scope=self.scope)
        return _PruneColumns(linears, factor, columns=SOLVER_BLOCK, kept_of_group=None, scope=self.scope)


@dataclass
class _PruneColumns:
    """The column rule: some columns at a time, choose which weights of each linear go."""

    linears: Sequence[LinearTask]
    factor: Factor
    columns: int
    kept_of_group: list[int] | None
    scope: Scope

    def decide(self, first: int, weight_t: Tensor, diagonal: Tensor) -> None:
        """Choose the mask of these columns, shape [columns, out], from their saliencies."""
        scores_t = (weight_t / diagonal[:, None]).abs_()
        scores_t[self.factor.dead[first : first + len(weight_t)]] = 0.0
        widths = [linear.site.shape[0] for linear in self.linears]
        masks = [
            self._mask(index, scores.t().contiguous(), first).t()
            for index, scores in enumerate(scores_t.split(widths, dim=1))
        ]
        self._first = first
        self._keep = torch.cat(masks, dim=1).to(weight_t.dtype)

    def _mask(self, index: int, scores: Tensor, first: int) -> Tensor:
        if self.kept_of_group is not None:
            return keep_mask_of_groups(scores, self.kept_of_group[index], self.columns)
        task = self.linears[index]
        rows, n_inputs = task.site.shape
        last = first + scores.shape[1]
        # Whole counts whose sum over the column blocks is n_kept.
        n_kept = task.n_kept * last // n_inputs - task.n_kept * first // n_inputs
        return keep_mask(scores, n_kept, self.scope)

    def apply(self, column: int, values: Tensor) -> Tensor:
        """The column with the chosen weights set to zero."""
        return values * self._keep[column - self._first]

