"""What every backend refuses, in every unit, and in which words; the model is as it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from owl_compress.compression.contract import Backend
from owl_compress.compression.driver import compress_with_
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import Plan
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.models.structure import find_structure

PlanFor = Callable[..., Plan]
Planned = Callable[..., Plan]
Make = Callable[..., TokenWindows]
MakeModel = Callable[[str], Any]


@pytest.fixture
def case(first_case: Any) -> Any:
    return first_case


@contextmanager
def refused(model: nn.Module, message: str) -> Iterator[None]:
    """A context that ends in a refusal of one line that says `message`, before anything was changed."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RequestError, match=message) as caught:
        yield
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def edited(plan: Plan, budgets: list[dict[str, Any]]) -> Plan:
    return Plan.model_validate({**plan.model_dump(), "target": plan.high, "budgets": budgets})


def test_a_plan_for_another_model_is_refused(
    make_model: MakeModel, backend: Backend, planned: Planned, make_windows: Make
) -> None:
    model, other = make_model("llama"), make_model("opt")
    good = planned(model)
    first, *rest = good.model_dump()["budgets"]
    for plan, message in [
        (planned(other), "which the model does not have"),
        (edited(good, [{**first, "name": "model.layers.0.self_attn.q"}, *rest]), "does not have"),
        (edited(good, [{**first, "n_weights": 7}, *rest]), "has 1024 weights in the model and 7 in the plan"),
        (edited(good, rest), r"plan has no budget for linear 'model\.layers\.0\.self_attn\.q_proj'"),
    ]:
        with refused(model, message):
            compress_with_(model, plan, backend, make_windows(1))


def test_a_plan_in_another_unit_is_refused(
    make_model: MakeModel, case: Any, backend: Backend, plan_for: PlanFor, make_windows: Make
) -> None:
    model = make_model("llama")
    for unit in set(Unit) - {case.unit}:
        plan = plan_for(model, 4.0 if unit is Unit.BITS else 1.0, unit=unit)
        with refused(
            model,
            f"backend '{case.name}' carries out budgets in {case.unit}, the plan is in {unit}",
        ):
            compress_with_(model, plan, backend, make_windows(1))


def test_missing_text_is_asked_for_where_it_is_needed(
    make_model: MakeModel, case: Any, backend: Backend, planned: Planned
) -> None:
    model = make_model("llama")
    if backend.statistic is None:
        assert compress_with_(model, planned(model), backend, None).calibration is None
        return
    with refused(model, f"backend '{case.name}' needs calibration text: give --calib"):
        compress_with_(model, planned(model), backend, None)


def test_a_broken_weight_is_refused_by_name_before_any_block_is_run(
    make_model: MakeModel, backend: Backend, planned: Planned, make_windows: Make
) -> None:
    for index in (0, 2, 3, 5, 6):  # q, v, o, up, down
        model = make_model("llama")
        broken = find_structure(model).blocks[1].linears[index]
        broken.weight[1, 2] = torch.nan
        with pytest.raises(RequestError, match=rf"^{broken.name}\.weight holds NaN or Inf"):
            compress_with_(model, planned(model), backend, make_windows(1))
