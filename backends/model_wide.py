"""A comparison across the whole model: one threshold over the scores of all linears sets their counts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import nextafter
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from owl_compress.compression.contract import Surveyed
from owl_compress.compression.tasks import BlockTask, GroupTask
from owl_compress.documents.plan import Plan
from owl_compress.documents.units import kept_weights
from owl_compress.models.residence import residence_of
from owl_compress.models.structure import LinearSite
from owl_compress.walk.input_statistics import Statistic
from owl_compress.walk.scores import ScoredWeight, ScorePool, kth_smallest


class ColumnScale(Protocol):
    """How a backend scores: |W_ij| * scale_j."""

    def column_scale(self, group: GroupTask) -> Tensor:
        """The scale of each input of the group's linears, shape [in], float32."""
        ...


@dataclass
class ModelWideSurvey:
    """Compares the scores |W_ij| * scale_j of all linears with each other, on the dense model.

    The `plan` sets the total alone: the number of weights kept in the whole model. One threshold over all
    scores, found exactly, then gives the count of each linear.
    """

    scoring: ColumnScale
    statistic: type[Statistic] | None = None
    _blocks: list["_NotedBlock"] = field(default_factory=list)

    restates: ClassVar[bool] = True
    own_division: ClassVar[str] = (
        "is to compare weights across the model, which divides the budget by itself: use --scope row "
        "or linear"
    )
    is_blockwise: ClassVar[Literal[True]] = True

    def see(self, task: BlockTask) -> None:
        """Note the scale of every input. Weights are looked at later: they may be on the device for now."""
        scales = {
            linear.site.name: (linear.site, scale)
            for group in task.groups
            for scale in [self.scoring.column_scale(group)]
            for linear in group.linears
        }
        self._blocks.append(_NotedBlock(task.site.module, scales))

    def redistribute(self, plan: Plan) -> Surveyed:
        """Per-linear densities of one model-wide comparison, with as many weights kept as `plan` keeps."""
        n_kept = sum(kept_weights(budget.value, budget.n_weights) for budget in plan.budgets)
        counts = _counts_of_highest(self._blocks, [budget.name for budget in plan.budgets], n_kept)
        budgets = [
            {**budget.model_dump(), "value": density_keeping(counts[budget.name], budget.n_weights)}
            for budget in plan.budgets
        ]
        changed = {"low": 0.0, "high": 1.0, "budgets": budgets}
        return Surveyed(Plan.model_validate({**plan.model_dump(), **changed}))


@dataclass(frozen=True)
class _NotedBlock:
    """A block, and its linears by name, each with the scale of its inputs."""

    module: nn.Module
    scales: Mapping[str, tuple[LinearSite, Tensor]]

    @contextmanager
    def at_hand(self) -> Iterator[dict[str, ScoredWeight]]:
        """Its scored weights; they are there inside, wherever the block has them."""
        residence, (_, first) = residence_of(self.module), next(iter(self.scales.values()))
        with residence.present(first.device) if residence else nullcontext():
            yield {
                name: ScoredWeight(site.weight, scale.to(site.weight.device))
                for name, (site, scale) in self.scales.items()
            }


def _counts_of_highest(blocks: Sequence[_NotedBlock], names: Sequence[str], n_kept: int) -> dict[str, int]:
    """How many of the `n_kept` highest scores each linear has; of equal ones the first of `names` has them.

    Four looks at all blocks, one after the other; the last ends as soon as nothing is missing.
    """
    if n_kept == 0:
        return dict.fromkeys(names, 0)
    size = sum(site.n_weights for block in blocks for site, _ in block.scales.values())
    prefixes = _prefix_counts(blocks)
    threshold = kth_smallest(prefixes, _chunks(blocks), size - n_kept + 1)
    counts: dict[str, int] = {}
    for block in blocks:
        with block.at_hand() as members:
            counts |= {name: ScorePool((one,)).count_above(threshold) for name, one in members.items()}
    missing = n_kept - sum(counts.values())
    home = {name: block for block in blocks for name in block.scales}
    for name in names:
        if not missing:
            break
        with home[name].at_hand() as members:
            ties = sum(int((chunk == threshold).sum()) for chunk in members[name].chunks())
        taken = min(ties, missing)
        counts[name] += taken
        missing -= taken
    return counts


def _prefix_counts(blocks: Sequence[_NotedBlock]) -> Tensor:
    """Numbers of all scores by their upper bits."""
    counts = []
    for block in blocks:
        with block.at_hand() as members:
            counts.append(torch.stack([one.prefix_counts for one in members.values()]).sum(dim=0))
    return torch.stack(counts).sum(dim=0)


def _chunks(blocks: Sequence[_NotedBlock]) -> Iterator[Tensor]:
    """All scores, a chunk at a time."""
    for block in blocks:
        with block.at_hand() as members:
            for one in members.values():
                yield from one.chunks()


def density_keeping(n_kept: int, n_weights: int) -> float:
    """The smallest density that keeps `n_kept` of `n_weights`."""
    value = n_kept / n_weights
    while kept_weights(value, n_weights) < n_kept:
        value = nextafter(value, 1.0)
    return value
