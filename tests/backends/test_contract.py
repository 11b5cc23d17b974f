"""What every backend owes, in every unit and with every kind of options: see the cases in `conftest`."""

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from owl_compress.compression.contract import Backend
from owl_compress.compression.driver import WalkOptions, compress_with_
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import Plan
from owl_compress.documents.result import Result
from owl_compress.documents.units import Unit
from owl_compress.forms.codes import coded_modules
from owl_compress.models.structure import find_structure

Planned = Callable[..., Plan]
Make = Callable[..., TokenWindows]
MakeModel = Callable[[str], Any]


@pytest.fixture
def case(way: Any) -> Any:
    return way


def digest(tensors: Iterable[Tensor]) -> str:
    hasher = hashlib.sha256()
    for tensor in tensors:
        hasher.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def timeless(result: Result) -> dict[str, Any]:
    content = result.model_dump(exclude={"wall_seconds", "peak_host_bytes", "peak_device_bytes"})
    return content | {"budgets": [{**row, "seconds": 0} for row in content["budgets"]]}


def test_modes_flags_and_everything_else_stay_as_mixed_as_they_were(
    make_model: MakeModel,
    backend: Backend,
    planned: Planned,
    make_windows: Make,
    some_skipped: Callable[..., tuple[str, ...]],
    only_changes: Callable[..., AbstractContextManager[None]],
) -> None:
    model = make_model("opt")
    for index, module in enumerate(model.modules()):
        module.training = index % 3 == 0
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 == 0)
    plan = planned(model, skipped=some_skipped(model))
    with only_changes(model, plan):
        compress_with_(model, plan, backend, make_windows(2))


def test_two_runs_give_the_same_bytes(
    make_model: MakeModel, case: Any, planned: Planned, make_windows: Make
) -> None:
    found = []
    for _ in range(2):
        model = make_model("gemma3")
        result = compress_with_(model, planned(model), case.backend(), make_windows(3))
        found.append((digest(model.state_dict().values()), timeless(result)))
    assert found[0] == found[1]


def test_outcomes_come_in_the_order_of_the_plan(
    make_model: MakeModel, case: Any, planned: Planned, make_windows: Make
) -> None:
    model, again = make_model("llama"), make_model("llama")
    plan = planned(model)
    turned = Plan.model_validate({**plan.model_dump(), "budgets": plan.model_dump()["budgets"][::-1]})
    rows = [
        timeless(compress_with_(given, order, case.backend(), make_windows(1)))["budgets"]
        for given, order in ((model, plan), (again, turned))
    ]
    assert [row["name"] for row in rows[1]] == [budget.name for budget in turned.budgets]
    assert rows[1] == rows[0][::-1]
    assert digest(model.state_dict().values()) == digest(again.state_dict().values())


def test_batches_of_several_change_nothing_but_rounding(
    make_model: MakeModel, case: Any, planned: Planned, make_windows: Make
) -> None:
    models, achieved = [], []
    for batch_size in (1, 3):
        model = make_model("mistral")
        # Of codes the last block alone: where one falls on the other side of a border, all that follows it in
        # the walk sees other inputs.
        before = find_structure(model).blocks[: -1 if case.unit is Unit.BITS else 0]
        skipped = tuple(linear.name for block in before for linear in block.linears)
        options = WalkOptions(batch_size=batch_size)
        plan = planned(model, skipped=skipped)
        result = compress_with_(model, plan, case.backend(), make_windows(5), options)
        achieved.append([row.achieved for row in result.budgets])
        models.append(model)
    assert achieved[0] == achieved[1]
    for one, many in zip(*(find_structure(model).linears for model in models), strict=True):
        differing = (one.weight - many.weight).abs() > 1e-4
        if case.unit is Unit.BITS:  # a code over the border moves the rest of its row
            assert int(differing.any(dim=1).sum()) <= 0.1 * len(differing)
            continue
        if case.unit is Unit.DENSITY:
            assert torch.count_nonzero(one.weight) == torch.count_nonzero(many.weight)
        # Rounding may turn the order of two scores that are nearly equal, and with it two weights of a mask.
        differing |= (one.weight != 0) != (many.weight != 0)
        assert int(differing.sum()) <= 0.01 * one.n_weights


def test_the_result_says_what_was_done(
    make_model: MakeModel,
    case: Any,
    backend: Backend,
    planned: Planned,
    make_windows: Make,
    tmp_path: Path,
) -> None:
    model, windows = make_model("llama"), make_windows(2)
    n_params = sum(parameter.numel() for parameter in model.parameters())
    plan = planned(model)
    result = compress_with_(model, plan, backend, windows)
    assert result.backend.name == case.name
    assert result.backend.parameters == asdict(backend)
    assert json.loads(result.model_dump_json())["backend"]["parameters"] == asdict(backend)
    assert result.error_measure == backend.error_measure
    assert result.model.family == "llama"
    assert result.calibration == windows.record
    assert (result.plan, result.report) == (plan.fingerprint, plan.report)
    assert result.totals.n_params_before == n_params
    assert result.totals.n_params_after == sum(parameter.numel() for parameter in model.parameters())
    assert (result.totals.n_params_after == n_params) == (case.unit is not Unit.WIDTH)
    assert (result.footprint is not None) == (case.unit is Unit.WIDTH)
    assert (result.totals.bits_per_weight == 32) == (case.unit is not Unit.BITS)
    assert (len(list(coded_modules(model))) == len(plan.budgets)) == (case.unit is Unit.BITS)
    assert result.wall_seconds >= sum(row.seconds for row in result.budgets)
    assert result.peak_host_bytes > 0
    result.write(tmp_path / "result.json")
    assert Result.read(tmp_path / "result.json") == result
