"""Round to nearest, on whole models."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from owl_compress.allocators import Target, allocate
from owl_compress.backends.rtn import Rtn
from owl_compress.compression.driver import compress_with_
from owl_compress.documents.plan import Plan
from owl_compress.errors import RequestError
from owl_compress.forms.codes import coded_modules
from owl_compress.importance.estimator import outline
from owl_compress.models.structure import find_structure


def plan_for(model: Any, bits: float = 3.0, choices: tuple[int, ...] = (2, 3, 4), **options: Any) -> Plan:
    return allocate(outline(model), "random", Target.from_bits(bits, choices, **options), {"seed": 0})


def test_weights_become_the_nearest_multiples_and_nothing_else_changes(
    make_model: Callable[[str], Any],
) -> None:
    model, before = make_model("llama"), make_model("llama").state_dict()
    plan = plan_for(model)
    result = compress_with_(model, plan, Rtn(group_size=16), None)
    quantized = {budget.name: budget.value for budget in plan.budgets}
    for name, now in model.state_dict().items():
        linear = name.removesuffix(".weight")
        if linear not in quantized:
            assert torch.equal(now, before[name])
            continue
        groups = before[name].reshape(now.shape[0], -1, 16)
        top = 2 ** (quantized[linear] - 1)
        scales = groups.abs().amax(dim=2, keepdim=True) / (top - 1)
        expected = torch.round(groups / scales).clamp(-top, top - 1) * scales
        assert torch.equal(now, expected.reshape(now.shape))
        row = next(row for row in result.budgets if row.name == linear)
        error = (now.double() - before[name].double()).square().sum() / before[name].double().square().sum()
        assert row.relative_error == pytest.approx(float(error))
    assert len({row.achieved for row in result.budgets}) > 1


def test_more_bits_err_less(make_model: Callable[[str], Any]) -> None:
    errors = []
    for bits in (2, 3, 4, 6, 8):
        model = make_model("llama")
        result = compress_with_(model, plan_for(model, bits, (bits,)), Rtn(16), None)
        errors.append(sum(row.relative_error for row in result.budgets))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


def test_whole_model_bits_count_scales_and_what_is_not_quantized(make_model: Callable[[str], Any]) -> None:
    model = make_model("llama")
    plan = plan_for(model)
    result = compress_with_(model, plan, Rtn(16), None)
    linears = find_structure(model).linear_sizes
    total = sum(parameter.numel() for parameter in model.parameters())
    bits = 32 * (total - sum(linears.values()))
    bits += sum(int(budget.value) * budget.n_weights + 32 * budget.n_weights // 16 for budget in plan.budgets)
    assert result.totals.bits_per_weight == pytest.approx(bits / total)


@pytest.mark.parametrize("bits", [2.5, 3.0, 3.5])
def test_achieved_is_what_was_asked_and_never_above_the_average(
    make_model: Callable[[str], Any], bits: float
) -> None:
    model = make_model("llama")
    result = compress_with_(model, plan_for(model, bits), Rtn(16), None)
    assert all(row.achieved == row.asked for row in result.budgets)
    assert result.totals.achieved <= bits
    coded = {name: codes for name, _, codes in coded_modules(model)}
    assert {name: codes.bits for name, codes in coded.items()} == {
        row.name: row.achieved for row in result.budgets
    }


def test_tied_linears_get_one_width(make_model: Callable[[str], Any]) -> None:
    model = make_model("llama")
    for tie in (True, False):
        plan = plan_for(model, granularity="linear", tie=tie)
        equal = [
            len({plan.value_of(f"model.layers.{i}.self_attn.{x}_proj") for x in "qkv"}) == 1
            and plan.value_of(f"model.layers.{i}.mlp.gate_proj")
            == plan.value_of(f"model.layers.{i}.mlp.up_proj")
            for i in range(3)
        ]
        assert all(equal) == tie


def test_group_size_that_does_not_divide_names_the_linear(make_model: Callable[[str], Any]) -> None:
    model = make_model("llama")
    with pytest.raises(RequestError, match=r"self_attn\.q_proj has 32 inputs, which groups of 64"):
        compress_with_(model, plan_for(model), Rtn(), None)


def test_group_size_below_one_is_refused() -> None:
    with pytest.raises(RequestError, match="group size 0 is below 1"):
        Rtn(group_size=0)


def test_compressing_again_with_another_backend_forgets_the_codes(make_model: Callable[[str], Any]) -> None:
    from owl_compress.backends.magnitude import Magnitude

    model = make_model("llama")
    compress_with_(model, plan_for(model), Rtn(16), None)
    pruned = allocate(outline(model), "uniform", Target.from_sparsity(0.5))
    compress_with_(model, pruned, Magnitude(), None)
    assert not list(coded_modules(model))
