"""Wanda: weights times the norm of what they multiply."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from owl_compress.backends.masking import prune_block_
from owl_compress.backends.model_wide import ModelWideSurvey
from owl_compress.backends.selection import Scope
from owl_compress.compression.tasks import BlockTask, GroupTask, LinearOutcome
from owl_compress.documents.plan import ROUNDING
from owl_compress.documents.provenance import StatisticsSource
from owl_compress.documents.units import Unit
from owl_compress.options import option
from owl_compress.walk.input_statistics import SecondMoments, Statistic

_DENSE_FROM = 0.4
"""Target from which inputs of the dense model serve as well, compared within rows: no plan lost beyond chance
there, and some did at 0.375 and 0.3 (docs/measured.md, statistics of the dense model)."""


@dataclass(frozen=True)
class Wanda:
    """Score |W_ij| * ‖X_j‖_2, compared within each output row unless told otherwise (arXiv 2306.11695).

    The published code prunes floor(in * sparsity) weights of every row; here a linear keeps exactly
    floor(density * numel), so some rows keep one weight more than others.
    """

    scope: Scope = option(Scope.ROW, "Among which weights the least important are sought.")

    name: ClassVar[str] = "wanda"
    unit: ClassVar[Unit] = Unit.DENSITY
    solves_groups_apart: ClassVar[bool] = True
    statistic: ClassVar[type[Statistic]] = SecondMoments
    error_measure: ClassVar[str] = "squared output error over squared output, as if inputs were uncorrelated"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scope", Scope(self.scope))  # options arrive as plain text

    @property
    def survey(self) -> ModelWideSurvey | None:
        """A model-wide comparison, in scope MODEL."""
        return ModelWideSurvey(self, self.statistic) if self.scope is Scope.MODEL else None

    def usual_statistics(self, target: float) -> StatisticsSource:
        """The dense model's where that was measured to cost nothing: one pass serves importance as well."""
        is_enough = self.scope is Scope.ROW and target >= _DENSE_FROM - ROUNDING
        return "dense" if is_enough else "sequential"

    def column_scale(self, group: GroupTask) -> Tensor:
        """‖X_j‖_2 of every input, shape [in]."""
        if group.statistic is None:
            raise TypeError("Wanda needs the second moments of its inputs")
        return group.statistic.second_moments.sqrt().float()

    def compress_block_(self, task: BlockTask) -> Sequence[LinearOutcome]:
        """Prune the linears of `task` in place."""
        return prune_block_(task, self, self.scope)
