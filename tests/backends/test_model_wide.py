"""One comparison across the whole model: the total is kept exactly, and one threshold divides it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from owl_compress.backends.magnitude import Magnitude
from owl_compress.backends.model_wide import ModelWideSurvey, density_keeping
from owl_compress.backends.selection import Scope
from owl_compress.backends.sparsegpt import SparseGPT
from owl_compress.backends.wanda import Wanda
from owl_compress.compression.driver import compress_with_
from owl_compress.compression.tasks import GroupTask
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import Plan
from owl_compress.documents.units import KeptOfGrid
from owl_compress.errors import RequestError
from owl_compress.models.structure import find_structure

PlanFor = Callable[..., Plan]
Make = Callable[..., TokenWindows]


def spread_out(model: Any) -> Any:
    """Linears of very different size, so that one threshold treats them very differently."""
    with torch.no_grad():
        for index, linear in enumerate(find_structure(model).linears):
            linear.weight.mul_(1 + index % 5)
    return model


def test_magnitude_keeps_the_largest_weights_of_the_model(family_model: Any, plan_for: PlanFor) -> None:
    model = spread_out(family_model)
    dense = {linear.name: linear.weight.clone() for linear in find_structure(model).linears}
    everything = torch.cat([weight.flatten() for weight in dense.values()]).abs()
    n_kept = sum(int(0.37 * weight.numel()) for weight in dense.values())
    threshold = float(everything.sort(descending=True).values[n_kept - 1])
    result = compress_with_(model, plan_for(model, 0.37), Magnitude(Scope.MODEL), None)
    kept = 0
    for linear, row in zip(find_structure(model).linears, result.budgets, strict=True):
        expected = dense[linear.name].where(dense[linear.name].abs() >= threshold, 0.0)
        assert torch.equal(linear.weight, expected)
        assert row.achieved == int(torch.count_nonzero(linear.weight)) / linear.n_weights
        kept += int(torch.count_nonzero(linear.weight))
    assert kept == n_kept
    assert len({round(row.achieved, 2) for row in result.budgets}) > 3  # they do differ


@pytest.mark.parametrize("backend", [Wanda(Scope.MODEL), SparseGPT(Scope.MODEL)])
def test_the_total_is_kept_to_the_weight(
    make_model: Callable[[str], Any], make_windows: Make, plan_for: PlanFor, backend: Wanda | SparseGPT
) -> None:
    model = spread_out(make_model("qwen3"))
    result = compress_with_(model, plan_for(model, 0.43), backend, make_windows(3))
    linears = list(find_structure(model).linears)
    kept = [int(torch.count_nonzero(linear.weight)) for linear in linears]
    assert sum(kept) == sum(int(0.43 * linear.n_weights) for linear in linears)
    for linear, row, count in zip(linears, result.budgets, kept, strict=True):
        assert row.achieved == count / linear.n_weights
        assert int(row.asked * linear.n_weights) == count
    assert len({round(row.achieved, 2) for row in result.budgets}) > 3


def test_wanda_compares_the_scores_of_the_dense_model(
    make_model: Callable[[str], Any],
    make_windows: Make,
    plan_for: PlanFor,
    wanda_scores: Callable[..., dict[str, Tensor]],
) -> None:
    model, windows = spread_out(make_model("llama")), make_windows(3)
    products = list(wanda_scores(model, windows, find_structure(model).linears).values())
    n_kept = sum(int(0.5 * product.numel()) for product in products)
    threshold = torch.cat([p.flatten() for p in products]).sort(descending=True).values[n_kept - 1]
    result = compress_with_(model, plan_for(model, 0.5), Wanda(Scope.MODEL), windows)
    for product, row in zip(products, result.budgets, strict=True):
        # float32 scores may change places with the one at the threshold
        assert row.achieved * product.numel() == pytest.approx(int((product >= threshold).sum()), abs=1)


def test_equal_scores_go_to_the_first(make_model: Callable[[str], Any], plan_for: PlanFor) -> None:
    model = make_model("opt")
    linears = list(find_structure(model).linears)
    for linear in linears:
        linear.weight.fill_(0.5)
    compress_with_(model, plan_for(model, 0.5), Magnitude(Scope.MODEL), None)
    n_kept = sum(int(0.5 * linear.n_weights) for linear in linears)
    before = 0
    for linear in linears:
        expected = min(max(n_kept - before, 0), linear.n_weights)
        assert int(torch.count_nonzero(linear.weight)) == expected
        before += linear.n_weights


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_all_or_nothing(make_model: Callable[[str], Any], plan_for: PlanFor, density: float) -> None:
    model = make_model("gpt2")
    result = compress_with_(model, plan_for(model, density), Magnitude(Scope.MODEL), None)
    assert {row.achieved for row in result.budgets} == {density}


def test_skipped_linears_are_not_compared(make_model: Callable[[str], Any], plan_for: PlanFor) -> None:
    model = make_model("llama")
    skipped = ("model.layers.1.mlp.up_proj",)
    weight = model.get_parameter(f"{skipped[0]}.weight").clone()
    plan = plan_for(model, 0.5, skipped=skipped)
    result = compress_with_(model, plan, Magnitude(Scope.MODEL), None)
    assert torch.equal(model.get_parameter(f"{skipped[0]}.weight"), weight)
    assert len(result.budgets) == 20


def test_a_plan_on_a_grid_is_refused(make_model: Callable[[str], Any], plan_for: PlanFor) -> None:
    model = make_model("llama")
    before = model.state_dict()["model.layers.0.mlp.up_proj.weight"].clone()
    plan = plan_for(model, 0.5, grid=KeptOfGrid(kept_of=4))
    with pytest.raises(RequestError, match=r"compare weights across the model.*--scope row or linear"):
        compress_with_(model, plan, Magnitude(Scope.MODEL), None)
    assert torch.equal(model.state_dict()["model.layers.0.mlp.up_proj.weight"], before)


def test_one_scale_serves_a_group(task_of: Callable[..., Any]) -> None:
    asked: list[GroupTask] = []

    class Counting:
        def column_scale(self, group: GroupTask) -> Tensor:
            asked.append(group)
            return torch.ones(8)

    task = task_of([torch.randn(4, 8), torch.randn(5, 8), torch.randn(6, 8)], None, 0.5, None)
    ModelWideSurvey(Counting()).see(task)
    assert len(asked) == 1


@pytest.mark.parametrize("n_weights", [1, 3, 49, 1000, 10**7 + 19])
def test_a_density_that_keeps_a_count_keeps_that_count(n_weights: int) -> None:
    for n_kept in {0, 1, n_weights // 3, n_weights - 1, n_weights}:
        value = density_keeping(n_kept, n_weights)
        assert 0 <= value <= 1
        assert int(value * n_weights) == n_kept
