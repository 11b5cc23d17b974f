"""Plans and tasks made by hand: no allocator, no walk."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from owl_compress.compression.tasks import BlockTask, GroupTask, LinearTask
from owl_compress.documents.plan import AllocatorRecord, LinearBudget, Plan, weighted_mean
from owl_compress.documents.units import Grid, Unit
from owl_compress.models.structure import BlockSite, LinearSite, find_structure


@pytest.fixture(scope="session")
def plan_for() -> Callable[..., Plan]:
    """A function that gives every linear of a model a value: one for all, or by name."""

    def make(
        model: nn.Module,
        values: float | Mapping[str, float],
        *,
        unit: Unit = Unit.DENSITY,
        grid: Grid | None = None,
        skipped: tuple[str, ...] = (),
    ) -> Plan:
        budgets = tuple(
            LinearBudget(
                name=linear.name,
                block=block.name,
                n_weights=linear.n_weights,
                value=values[linear.name] if isinstance(values, Mapping) else values,
            )
            for block in find_structure(model).blocks
            for linear in block.linears
            if linear.name not in skipped
        )
        return Plan(
            unit=unit,
            target=weighted_mean(budgets),
            grid=grid,
            low=0.0,
            high=16.0 if unit is Unit.BITS else 1.0,
            allocator=AllocatorRecord(name="by hand"),
            report="0" * 64,
            skipped=skipped,
            budgets=budgets,
        )

    return make


@pytest.fixture(scope="session")
def varied() -> Callable[[nn.Module], dict[str, float]]:
    """A function that draws an odd density for every linear of a model."""

    def draw(model: nn.Module) -> dict[str, float]:
        generator = torch.Generator().manual_seed(1)
        linears = list(find_structure(model).linears)
        numbers = (0.1 + 0.8 * torch.rand(len(linears), generator=generator)).tolist()
        return {linear.name: number for linear, number in zip(linears, numbers, strict=True)}

    return draw


@pytest.fixture(scope="session")
def task_of() -> Callable[..., BlockTask]:
    """A function that makes a block of one group out of weights [out, in] and inputs [tokens, in]."""

    def make(
        weights: list[Tensor], inputs: Tensor | None, density: float, statistic: Any, grid: Grid | None = None
    ) -> BlockTask:
        sites = []
        for index, weight in enumerate(weights):
            module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            module.weight = nn.Parameter(weight.clone())
            sites.append(LinearSite(f"block.{index}", "other", module))
        gathered = None
        if statistic is not None and inputs is not None:
            gathered = statistic.empty(inputs.shape[1], inputs.device)
            gathered.add(inputs)
        group = GroupTask(tuple(LinearTask(site, density) for site in sites), gathered)
        return BlockTask(BlockSite("block", nn.Module(), tuple(sites)), (group,), grid)

    return make
