"""What every backend in the unit of density owes besides; and the walk, with one of them, on every family."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from owl_compress.backends import BACKENDS
from owl_compress.backends.magnitude import Magnitude
from owl_compress.backends.wanda import Wanda
from owl_compress.compression.contract import Backend
from owl_compress.compression.driver import WalkOptions, compress_with_
from owl_compress.compression.tasks import LinearTask
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import Plan
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.errors import RequestError
from owl_compress.models.structure import find_structure

PlanFor = Callable[..., Plan]
Make = Callable[..., TokenWindows]
Varied = Callable[[nn.Module], dict[str, float]]

BY_DENSITY = [name for name in BACKENDS.names() if BACKENDS.load(name).unit is Unit.DENSITY]


@pytest.fixture(params=BY_DENSITY)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def backend(name: str) -> Backend:
    made: Backend = BACKENDS.load(name)()
    return made


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_group_that_does_not_divide_the_inputs_is_refused(
    make_model: Callable[[str], Any], backend: Backend, name: str, make_windows: Make, plan_for: PlanFor
) -> None:
    model = make_model("llama")
    plan = plan_for(model, 0.4, grid=KeptOfGrid(kept_of=5))
    with pytest.raises(RequestError, match=r"model\.layers\.0\..* has 32 inputs, which groups of 5"):
        compress_with_(model, plan, backend, make_windows(1))


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_all_or_nothing(
    make_model: Callable[[str], Any],
    backend: Backend,
    name: str,
    make_windows: Make,
    plan_for: PlanFor,
    density: float,
) -> None:
    model = make_model("gpt2")
    before = snapshot(model)
    result = compress_with_(model, plan_for(model, density), backend, make_windows(2))
    for row in result.budgets:
        assert row.achieved == density
        if density == 1.0:
            assert torch.equal(model.state_dict()[f"{row.name}.weight"], before[f"{row.name}.weight"])
            assert row.relative_error == 0.0


def test_masks_alone_leave_what_stays(
    family_model: Any, family_index: int, make_windows: Make, plan_for: PlanFor
) -> None:
    before = snapshot(family_model)
    plan = plan_for(family_model, 0.5)
    masking = (Wanda(), Magnitude())[family_index % 2]
    compress_with_(family_model, plan, masking, make_windows(2))
    for budget in plan.budgets:
        after = family_model.state_dict()[f"{budget.name}.weight"]
        assert torch.equal(after, before[f"{budget.name}.weight"].where(after != 0, 0.0))


def test_a_block_of_any_family_runs_once_to_be_looked_at_and_once_for_the_next(
    family_model: Any, make_windows: Make, plan_for: PlanFor, forwards_counted: Callable[..., Any]
) -> None:
    plan = plan_for(family_model, 0.5)
    with forwards_counted(family_model) as counts:
        compress_with_(family_model, plan, Wanda(), make_windows(3))
    # Nothing follows the last block; a single token tells what a block returns. A window goes through the
    # model, and is walked, before anything else.
    assert counts == [[24, 1, 24, 1, *[24] * 6], [24] * 8, [24] * 5]


def test_an_interrupt_leaves_a_model_of_any_family_that_works(
    family_model: Any, make_windows: Make, plan_for: PlanFor, interrupted_at_second: WalkOptions
) -> None:
    family_model.train()
    plan = plan_for(family_model, 0.5)
    with pytest.raises(KeyboardInterrupt):
        compress_with_(family_model, plan, Wanda(), make_windows(2), interrupted_at_second)
    assert all(module.training for module in family_model.modules())
    assert not any("forward" in module.__dict__ for module in family_model.modules())
    assert not any(module._forward_pre_hooks for module in family_model.modules())
    assert family_model.eval()(input_ids=make_windows(1).ids).logits.isfinite().all()


def test_the_result_names_the_scope(
    make_model: Callable[[str], Any], backend: Backend, name: str, make_windows: Make, plan_for: PlanFor
) -> None:
    model = make_model("llama")
    result = compress_with_(model, plan_for(model, 0.5), backend, make_windows(1))
    assert "scope" in result.backend.parameters


def test_a_count_is_the_floor_of_the_density() -> None:
    site = find_site(8, 125)
    assert [LinearTask(site, value).n_kept for value in (0.0, 0.0009, 0.5, 0.9999, 1.0)] == [
        0,
        0,
        500,
        999,
        1000,
    ]


def find_site(rows: int, columns: int) -> Any:
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Sequential(nn.Linear(columns, rows))])
    return next(find_structure(model).linears)
