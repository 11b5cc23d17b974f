"""What a backend is given, and what it hands back: tasks of blocks and linears, and their outcomes."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from owl_compress.documents.result import Fallback
from owl_compress.documents.units import Grid, kept_weights
from owl_compress.forms.codes import QuantizedWeight
from owl_compress.models.structure import BlockSite, LinearSite
from owl_compress.walk.gradients import Salience
from owl_compress.walk.input_statistics import Statistic

T = TypeVar("T")


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

    For a backend that needs no statistic it is None, and every linear is a group of its own. `memo` is there
    where the same dense weights are going to be compressed several times over, see `once`.
    """

    linears: tuple[LinearTask, ...]
    statistic: Statistic | None
    memo: dict[Hashable, Any] | None = field(default=None, repr=False, compare=False)

    @property
    def is_tried_again(self) -> bool:
        """Whether several compressions share what is worked out once."""
        return self.memo is not None

    def once(self, what: Hashable, work: Callable[[], T]) -> T:
        """What `work` returns; done once, under the name `what`, for all compressions that share the memo.

        `what` names whatever the outcome depends on besides the statistic and the backend, such as a linear;
        budgets and grid may have no part in it. Nobody may change what is returned.
        """
        if self.memo is None:
            return work()
        if what not in self.memo:
            self.memo[what] = work()
        known: T = self.memo[what]
        return known


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
    if weight.device.type != "cpu":
        return int(torch.count_nonzero(weight)) / weight.numel()
    # On a CPU numpy compares and counts many times as fast as torch, where it knows the type.
    is_known = weight.dtype in {torch.float16, torch.float32, torch.float64}
    is_kept = weight.detach().numpy() != 0 if is_known else (weight != 0).numpy()
    return np.count_nonzero(is_kept) / weight.numel()
