"""Magnitude pruning: the smallest weights go. Needs no calibration text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from owl_compress.backends.masking import prune_block_
from owl_compress.backends.model_wide import ModelWideSurvey
from owl_compress.backends.selection import Scope
from owl_compress.compression.tasks import BlockTask, GroupTask, LinearOutcome
from owl_compress.documents.units import Unit
from owl_compress.options import option


@dataclass(frozen=True)
class Magnitude:
    """Score |W_ij|, compared within a linear unless told otherwise (Han et al., arXiv 1506.02626)."""

    scope: Scope = option(Scope.LINEAR, "Among which weights the least important are sought.")

    name: ClassVar[str] = "magnitude"
    unit: ClassVar[Unit] = Unit.DENSITY
    solves_groups_apart: ClassVar[bool] = True
    statistic: ClassVar[None] = None
    error_measure: ClassVar[str] = "share of the squared weights removed"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scope", Scope(self.scope))  # options arrive as plain text

    @property
    def survey(self) -> ModelWideSurvey | None:
        """A model-wide comparison, in scope MODEL."""
        return ModelWideSurvey(self) if self.scope is Scope.MODEL else None

    def column_scale(self, group: GroupTask) -> Tensor:
        """One for every input, shape [in]."""
        weight = group.linears[0].site.weight
        return torch.ones(weight.shape[1], device=weight.device)

    def compress_block_(self, task: BlockTask) -> Sequence[LinearOutcome]:
        """Prune the linears of `task` in place."""
        return prune_block_(task, self, self.scope)
