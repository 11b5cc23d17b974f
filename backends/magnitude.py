"""Magnitude pruning: the smallest weights go. Needs no calibration text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from owl_compress.backend import BlockTask, LinearOutcome
from owl_compress.backends.masking import prune_block_
from owl_compress.backends.selection import ModelWideSurvey, Scope
from owl_compress.plan import Unit
from owl_compress.statistics import Statistic


@dataclass(frozen=True)
class Magnitude:
    """Score |W_ij|, compared within a linear unless told otherwise (Han et al., arXiv 1506.02626)."""

    scope: Scope = Scope.LINEAR

    unit: ClassVar[Unit] = Unit.DENSITY
    statistic: ClassVar[None] = None
    error_measure: ClassVar[str] = "share of the squared weights removed"

    @property
    def survey(self) -> ModelWideSurvey | None:
        """A model-wide comparison, in scope MODEL."""
        return ModelWideSurvey(self) if self.scope is Scope.MODEL else None

    def column_scale(self, statistic: Statistic | None, n_inputs: int) -> Tensor:  # noqa: ARG002
        """One for every input, shape [in]."""
        return torch.ones(n_inputs)

    def compress_block_(self, task: BlockTask) -> Sequence[LinearOutcome]:
        """Prune the linears of `task` in place."""
        return prune_block_(task, self, self.scope)
