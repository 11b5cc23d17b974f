"""What every backend in the unit of density owes, on every family."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from owl_compress.backends import BACKENDS
from owl_compress.compression.contract import Backend
from owl_compress.compression.driver import WalkOptions, compress_with_
from owl_compress.compression.tasks import LinearTask
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import Plan
from owl_compress.documents.result import Result
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.errors import RequestError
from owl_compress.models.structure import find_structure

PlanFor = Callable[..., Plan]
Make = Callable[..., TokenWindows]
Varied = Callable[[nn.Module], dict[str, float]]

BY_DENSITY = [name for name in BACKENDS.names() if BACKENDS.load(name).unit is Unit.DENSITY]
RESTORING = ["magnitude", "wanda"]  # what stays, stays as it was


@pytest.fixture(params=BY_DENSITY)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def backend(name: str) -> Backend:
    made: Backend = BACKENDS.load(name)()
    return made


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def digest(tensors: Iterable[Tensor]) -> str:
    hasher = hashlib.sha256()
    for tensor in tensors:
        hasher.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def test_every_linear_keeps_exactly_its_count(
    family_model: Any, backend: Backend, name: str, make_windows: Make, plan_for: PlanFor, varied: Varied
) -> None:
    values = varied(family_model)
    plan = plan_for(family_model, values)
    result = compress_with_(family_model, plan, backend, make_windows(3))
    assert [row.name for row in result.budgets] == [budget.name for budget in plan.budgets]
    kept_in_all = 0
    for row in result.budgets:
        weight = family_model.get_parameter(f"{row.name}.weight")
        kept = int((weight != 0).sum())
        kept_in_all += kept
        assert kept == int(values[row.name] * weight.numel())
        assert row.achieved == kept / weight.numel()
        assert row.asked == values[row.name]
        assert row.unit is Unit.DENSITY
        assert 0 <= row.relative_error < 1  # 0 where only inputs were cut that are always zero (OPT's ReLU)
        assert row.seconds >= 0
        assert torch.isfinite(weight).all()
    assert sum(row.relative_error > 0 for row in result.budgets) > len(result.budgets) / 2
    assert result.totals.n_weights == sum(row.n_weights for row in result.budgets)
    assert result.totals.achieved == pytest.approx(kept_in_all / result.totals.n_weights, rel=1e-12)
    assert result.totals.achieved <= result.totals.asked == plan.achieved <= plan.target


def test_nothing_else_is_touched(
    family_model: Any, backend: Backend, name: str, make_windows: Make, plan_for: PlanFor
) -> None:
    family_model.train()
    first, second, _ = find_structure(family_model).blocks
    skipped = (first.linears[0].name, *(linear.name for linear in second.linears))  # one, and a whole block
    before = snapshot(family_model)
    plan = plan_for(family_model, 0.5, skipped=skipped)
    result = compress_with_(family_model, plan, backend, make_windows(2))
    changed = {f"{row.name}.weight" for row in result.budgets}
    assert len(changed) >= 3
    for key, tensor in family_model.state_dict().items():
        same = tensor.dtype == before[key].dtype and torch.equal(tensor, before[key])
        assert same != (key in changed), key
    assert all(module.training for module in family_model.modules())
    assert torch.is_grad_enabled()
    assert all(parameter.requires_grad for parameter in family_model.parameters())


def test_two_runs_give_the_same_bytes(
    make_model: Callable[[str], Any],
    backend: Backend,
    name: str,
    make_windows: Make,
    plan_for: PlanFor,
    varied: Varied,
) -> None:
    found = []
    for _ in range(2):
        model = make_model("gemma3")
        result = compress_with_(model, plan_for(model, varied(model)), backend, make_windows(4))
        found.append((digest(model.state_dict().values()), timeless(result)))
    assert found[0] == found[1]


def timeless(result: Result) -> dict[str, Any]:
    content = result.model_dump(exclude={"wall_seconds", "peak_host_bytes", "peak_device_bytes"})
    return content | {"budgets": [{**row, "seconds": 0} for row in content["budgets"]]}


@pytest.mark.parametrize("kept_of", [4, 8])
def test_every_group_keeps_its_number(
    family_model: Any, backend: Backend, name: str, make_windows: Make, plan_for: PlanFor, kept_of: int
) -> None:
    linears = list(find_structure(family_model).linears)
    counts = {linear.name: 1 + index % (kept_of - 1) for index, linear in enumerate(linears)}
    values = {linear: count / kept_of for linear, count in counts.items()}
    plan = plan_for(family_model, values, grid=KeptOfGrid(kept_of=kept_of))
    result = compress_with_(family_model, plan, backend, make_windows(3))
    for linear, row in zip(linears, result.budgets, strict=True):
        groups = (linear.weight != 0).reshape(-1, kept_of).sum(dim=1)  # [out * in / kept_of]
        assert set(groups.tolist()) == {counts[linear.name]}
        assert row.achieved == values[linear.name]


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
    family_model: Any, name: str, make_windows: Make, plan_for: PlanFor
) -> None:
    if name not in RESTORING:
        pytest.skip("updates what stays")
    before = snapshot(family_model)
    plan = plan_for(family_model, 0.5)
    compress_with_(family_model, plan, BACKENDS.load(name)(), make_windows(2))
    for budget in plan.budgets:
        after = family_model.state_dict()[f"{budget.name}.weight"]
        assert torch.equal(after, before[f"{budget.name}.weight"].where(after != 0, 0.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(
    make_model: Callable[[str], Any],
    backend: Backend,
    name: str,
    make_windows: Make,
    plan_for: PlanFor,
    varied: Varied,
    dtype: torch.dtype,
) -> None:
    model = make_model("llama").to(dtype)
    values = varied(model)
    result = compress_with_(model, plan_for(model, values), backend, make_windows(3))
    for row in result.budgets:
        weight = model.get_parameter(f"{row.name}.weight")
        assert weight.dtype == dtype
        assert int(torch.count_nonzero(weight)) == int(values[row.name] * weight.numel())
    assert result.totals.bits_per_weight == 16


def test_batches_of_several_give_the_same_counts_and_nearly_the_same_weights(
    make_model: Callable[[str], Any], backend: Backend, name: str, make_windows: Make, plan_for: PlanFor
) -> None:
    models = []
    for batch_size in (1, 3):
        model = make_model("mistral")
        options = WalkOptions(batch_size=batch_size)
        compress_with_(model, plan_for(model, 0.5), backend, make_windows(5), options)
        models.append(model)
    for one, many in zip(*(find_structure(model).linears for model in models), strict=True):
        assert torch.count_nonzero(one.weight) == torch.count_nonzero(many.weight)
        # Rounding may turn the order of two scores that are nearly equal, and with it two weights of a mask.
        differing = int(((one.weight != 0) != (many.weight != 0)).sum())
        assert differing <= 0.01 * one.n_weights


def test_linears_with_the_same_input_share_one_statistic(
    make_model: Callable[[str], Any],
    backend: Backend,
    name: str,
    make_windows: Make,
    plan_for: PlanFor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if backend.statistic is None:
        pytest.skip("needs no statistic")
    made: list[int] = []
    original = backend.statistic.empty

    def counted(n_inputs: int, device: torch.device) -> Any:
        made.append(n_inputs)
        return original(n_inputs, device)

    monkeypatch.setattr(backend.statistic, "empty", counted)
    model = make_model("llama")
    compress_with_(model, plan_for(model, 0.5), backend, make_windows(2))
    assert made == [32, 32, 32, 64] * 3  # q/k/v, o, gate/up, down


def test_a_block_runs_once_to_be_looked_at_and_once_for_the_next(
    family_model: Any,
    backend: Backend,
    name: str,
    make_windows: Make,
    plan_for: PlanFor,
    forwards_counted: Callable[..., Any],
) -> None:
    plan = plan_for(family_model, 0.5)
    with forwards_counted(family_model) as counts:
        compress_with_(family_model, plan, backend, make_windows(3))
    # nothing follows the last block; a single token tells what a block returns
    expected = [[], [], []] if backend.statistic is None else [[1, *[24] * 6], [24] * 6, [24] * 3]
    assert counts == expected


def test_a_block_left_alone_runs_once(
    make_model: Callable[[str], Any],
    backend: Backend,
    name: str,
    make_windows: Make,
    plan_for: PlanFor,
    forwards_counted: Callable[..., Any],
) -> None:
    model = make_model("llama")
    skipped = tuple(linear.name for linear in find_structure(model).blocks[1].linears)
    with forwards_counted(model) as counts:
        compress_with_(model, plan_for(model, 0.5, skipped=skipped), backend, make_windows(3))
    assert counts[1] == ([] if backend.statistic is None else [24] * 3)


def test_a_plan_for_another_model_is_refused(
    make_model: Callable[[str], Any], backend: Backend, name: str, make_windows: Make, plan_for: PlanFor
) -> None:
    model, other = make_model("llama"), make_model("opt")
    before = snapshot(model)
    good = plan_for(model, 0.5)
    first, *rest = good.model_dump()["budgets"]
    for plan, message in [
        (plan_for(other, 0.5), "which the model does not have"),
        (edited(good, [{**first, "name": "model.layers.0.self_attn.q"}, *rest]), "does not have"),
        (edited(good, [{**first, "n_weights": 7}, *rest]), "has 1024 weights in the model and 7 in the plan"),
        (edited(good, rest), r"plan has no budget for linear 'model\.layers\.0\.self_attn\.q_proj'"),
    ]:
        with pytest.raises(RequestError, match=message):
            compress_with_(model, plan, backend, make_windows(1))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def edited(plan: Plan, budgets: list[dict[str, Any]]) -> Plan:
    return Plan.model_validate({**plan.model_dump(), "budgets": budgets})


@pytest.mark.parametrize("unit", [Unit.WIDTH, Unit.BITS])
def test_a_plan_in_another_unit_is_refused(
    make_model: Callable[[str], Any],
    backend: Backend,
    name: str,
    make_windows: Make,
    plan_for: PlanFor,
    unit: Unit,
) -> None:
    model = make_model("llama")
    message = f"backend '{name}' carries out budgets in density, the plan is in {unit}"
    with pytest.raises(RequestError, match=message):
        compress_with_(
            model,
            plan_for(model, 4.0 if unit is Unit.BITS else 1.0, unit=unit),
            backend,
            make_windows(1),
        )


def test_missing_text_is_asked_for(
    make_model: Callable[[str], Any], backend: Backend, name: str, plan_for: PlanFor
) -> None:
    model = make_model("llama")
    if backend.statistic is None:
        assert compress_with_(model, plan_for(model, 0.5), backend, None).calibration is None
        return
    with pytest.raises(RequestError, match=f"backend '{name}' needs calibration text: give --calib"):
        compress_with_(model, plan_for(model, 0.5), backend, None)


def test_the_result_says_what_was_done(
    make_model: Callable[[str], Any],
    backend: Backend,
    name: str,
    make_windows: Make,
    plan_for: PlanFor,
    tmp_path: Path,
) -> None:
    model, windows = make_model("llama"), make_windows(2)
    n_params = sum(parameter.numel() for parameter in model.parameters())
    plan = plan_for(model, 0.5)
    result = compress_with_(model, plan, backend, windows)
    assert result.backend.name == name
    assert "scope" in result.backend.parameters
    assert result.model.family == "llama"
    assert result.calibration == windows.record
    assert (result.plan, result.report) == (plan.fingerprint, plan.report)
    assert (result.totals.n_params_before, result.totals.n_params_after) == (n_params, n_params)
    assert result.totals.bits_per_weight == 32
    assert result.wall_seconds >= sum(row.seconds for row in result.budgets)
    assert result.peak_host_bytes > 0
    result.write(tmp_path / "result.json")
    assert Result.read(tmp_path / "result.json") == result


class InterruptAtSecond:
    """A progress display that is there when the user gives up, in the second block."""

    def track(self, items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
        for index, item in enumerate(items):
            if index == 1:
                raise KeyboardInterrupt
            yield item


def test_an_interrupt_leaves_a_model_that_works(
    family_model: Any, backend: Backend, name: str, make_windows: Make, plan_for: PlanFor
) -> None:
    family_model.train()
    options = WalkOptions(progress=InterruptAtSecond())
    with pytest.raises(KeyboardInterrupt):
        compress_with_(family_model, plan_for(family_model, 0.5), backend, make_windows(2), options)
    assert all(module.training for module in family_model.modules())
    assert not any("forward" in module.__dict__ for module in family_model.modules())
    assert not any(module._forward_pre_hooks for module in family_model.modules())
    assert family_model.eval()(input_ids=make_windows(1).ids).logits.isfinite().all()


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
