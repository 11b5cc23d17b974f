"""What a backend is given, and what it hands back: tasks of blocks and linears, and their outcomes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from owl_compress.documents.result import Fallback
from owl_compress.documents.units import Grid, kept_weights
from owl_compress.forms.codes import QuantizedWeight
from owl_compress.models.structure import BlockSite, LinearSite
from owl_compress.walk.gradients import Salience
from owl_compress.walk.input_statistics import Statistic


@dataclass(frozen=True)
class LinearTask:
    """One linear and the budget it has to meet; `salience` is there for a `GradientReader` that wants it."""

    site: LinearSite
    budget: float
    salience: Salience | None = None

    @property
    def n_kept(self) -> int:
        """Number of weights that a density budget keeps."""
        return kept_weights(self.budget, self.site.n_weights)


@dataclass(frozen=True)
class GroupTask:
    """Linears that read the same input, with the statistic of that input.

    For a backend that needs no statistic it is None, and every linear is a group of its own.
    """

    linears: tuple[LinearTask, ...]
    statistic: Statistic | None


@dataclass(frozen=True)
class BlockTask:
    """Everything a backend needs to compress one block in place.

    `decision` is what the backend's own survey has decided for this block, in the survey's words.
    """

    site: BlockSite
    groups: tuple[GroupTask, ...]
    grid: Grid | None
    decision: object = None


@dataclass(frozen=True)
class LinearOutcome:
    """What was done to one linear; `achieved` is counted from its tensor, in the plan's unit.

    A backend that quantizes hands back the codes that the linear's weight now stands for.
    """

    name: str
    achieved: float
    relative_error: float
    seconds: float
    fallbacks: tuple[Fallback, ...] = ()
    quantized: QuantizedWeight | None = None


def density(weight: Tensor) -> float:
    """Share of entries that are not zero."""
    return int(torch.count_nonzero(weight)) / weight.numel()
