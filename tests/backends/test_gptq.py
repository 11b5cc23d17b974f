"""GPTQ: against a literal loop in float64, against rounding to nearest, and where the Hessian is awkward."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from owl_compress.backends.gptq import Gptq
from owl_compress.backends.quantizer import GridRule, round_to_nearest
from owl_compress.backends.rtn import Rtn
from owl_compress.compression.tasks import BlockTask, GroupTask, LinearOutcome, LinearTask
from owl_compress.errors import RequestError
from owl_compress.models.structure import BlockSite, LinearSite
from owl_compress.walk.input_statistics import Gram

N_INPUTS = 64


def correlated_inputs(n_tokens: int = 400, n_inputs: int = N_INPUTS, seed: int = 0) -> Tensor:
    """Shape [tokens, in]: a few directions carry most of the energy, features differ in size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(12, n_inputs, generator=generator)
    sizes = torch.logspace(-1, 1, n_inputs)[torch.randperm(n_inputs, generator=generator)]
    common = torch.randn(n_tokens, 12, generator=generator) @ mixing
    return (common + 0.3 * torch.randn(n_tokens, n_inputs, generator=generator)) * sizes


def linears(*rows: int, seed: int = 1) -> tuple[nn.Linear, ...]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return tuple(nn.Linear(N_INPUTS, n, bias=False) for n in rows)


def compress_(
    backend: Gptq | Rtn, modules: tuple[nn.Linear, ...], gram: Tensor, bits: tuple[int, ...]
) -> list[LinearOutcome]:
    sites = tuple(LinearSite(f"block.{i}", "other", module) for i, module in enumerate(modules))
    tasks = tuple(LinearTask(site, float(b)) for site, b in zip(sites, bits, strict=True))
    block = BlockSite("block", nn.ModuleList(modules), sites)
    return list(backend.compress_block_(BlockTask(block, (GroupTask(tasks, Gram(gram)),), None)))


def gram_of(inputs: Tensor) -> Tensor:
    return inputs.t() @ inputs


def output_error(before: Tensor, after: Tensor, inputs: Tensor) -> float:
    return float(((before - after).double() @ inputs.t().double()).square().sum())


def visited(moments: list[float], group_size: int, order: str) -> list[int]:
    """The columns as they lie, group by group with the largest first, or all by falling second moment."""
    columns = list(range(len(moments)))
    if order == "columns":
        return columns
    if order == "activation":
        return sorted(columns, key=lambda column: -moments[column])
    groups = [columns[start : start + group_size] for start in columns[::group_size]]
    groups.sort(key=lambda group: -max(moments[column] for column in group))
    return [column for group in groups for column in sorted(group, key=lambda column: -moments[column])]


ORDERS = {
    "columns": {"group_order": False},
    "groups": {},
    "activation": {"activation_order": True},
}


def literal_gptq(weight: Tensor, gram: Tensor, bits: int, group_size: int, order: str = "columns") -> Tensor:
    """Algorithm 1 of the paper without blocks: the inverse Hessian is updated after every column."""
    weight, gram = weight.double().clone(), gram.double()
    top, half_range = 2 ** (bits - 1), (2**bits - 1) / 2
    hessian = gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    left = visited(gram.diagonal().tolist(), group_size, order)
    static = weight.reshape(len(weight), -1, group_size).abs().amax(dim=2) / half_range
    scales: dict[int, Tensor] = {}
    inverse = torch.linalg.inv(hessian)
    for column in list(left):
        group = column // group_size
        if order == "activation":
            scales[group] = static[:, group]
        elif group not in scales:
            members = slice(group * group_size, (group + 1) * group_size)
            scales[group] = weight[:, members].abs().amax(dim=1) / half_range
        codes = torch.round(weight[:, column] / scales[group]).clamp(-top, top - 1)
        error = (weight[:, column] - codes * scales[group]) / inverse[column, column]
        others = [other for other in left if other != column]
        weight[:, others] -= torch.outer(error, inverse[column, others])
        weight[:, column] = codes * scales[group]
        inverse = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
        left = others
    return weight


def round_(modules: Sequence[nn.Linear], bits: Sequence[int], group_size: int | None, **options: Any) -> None:
    """Every weight to the nearest code of the grids that GPTQ would use."""
    for module, width in zip(modules, bits, strict=True):
        rule = GridRule(
            options.get("symmetric", True), options.get("mse", False), torch.float32, all_codes=True
        )
        rounded = round_to_nearest(module.weight.data, width, rule, group_size)
        module.weight.data.copy_(rounded.dequantised())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("group_size", [16, 64])
def test_it_is_the_published_algorithm(group_size: int, order: str) -> None:
    gram = gram_of(correlated_inputs())
    modules = linears(8)
    expected = literal_gptq(modules[0].weight.data, gram, 4, group_size, order)
    compress_(Gptq(group_size, **ORDERS[order]), modules, gram, (4,))
    # A value on the border between two codes may fall either way in float32.
    agree = torch.isclose(modules[0].weight.double(), expected, atol=1e-4).double().mean()
    assert agree > 0.97


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n_inputs", [192, 256])
def test_columns_over_several_solver_blocks_are_still_the_published_algorithm(
    n_inputs: int, order: str
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = nn.Linear(n_inputs, 8, bias=False)
    gram = gram_of(correlated_inputs(600, n_inputs))
    expected = literal_gptq(module.weight.data, gram, 4, 64, order)
    compress_(Gptq(64, **ORDERS[order]), (module,), gram, (4,))
    assert torch.isclose(module.weight.double(), expected, atol=1e-4).double().mean() > 0.95


@pytest.mark.parametrize("options", [{}, {"symmetric": False}, {"mse": True}, {"activation_order": True}])
@pytest.mark.parametrize("group_size", [16, None])
def test_uncorrelated_equal_inputs_leave_rounding_to_nearest(
    options: dict[str, Any], group_size: int | None
) -> None:
    ours, theirs = linears(8, 4), linears(8, 4)
    compress_(Gptq(group_size, **options), ours, torch.eye(N_INPUTS), (3, 4))
    round_(theirs, (3, 4), group_size, **options)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.weight, other.weight)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(
    "options", [{}, {"symmetric": False}, {"mse": True}, {"activation_order": True}, {"group_size": None}]
)
def test_the_true_output_error_is_smaller_than_with_rounding(bits: int, options: dict[str, Any]) -> None:
    inputs = correlated_inputs()
    before = linears(24)[0].weight.data
    errors = []
    rounding = {"group_size": 16} | {key: options[key] for key in options if key != "activation_order"}
    for backend in (Gptq(**({"group_size": 16} | options)), Rtn(**rounding)):
        modules = linears(24)
        compress_(backend, modules, gram_of(inputs), (bits,))
        errors.append(output_error(before, modules[0].weight.data, inputs))
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("order", ["groups", "activation"])
def test_the_largest_first_helps_where_inputs_differ_in_size(order: str) -> None:
    inputs = correlated_inputs()
    before = linears(64)[0].weight.data
    errors = []
    for options in (ORDERS["columns"], ORDERS[order]):
        modules = linears(64)
        compress_(Gptq(None, **options), modules, gram_of(inputs), (3,))
        errors.append(output_error(before, modules[0].weight.data, inputs))
    assert errors[1] < errors[0]


def test_linears_side_by_side_are_as_each_alone_though_their_bits_differ() -> None:
    gram = gram_of(correlated_inputs())
    together, alone = linears(8, 4, 6), linears(8, 4, 6)
    outcomes = compress_(Gptq(16), together, gram, (4, 2, 3))
    assert [outcome.achieved for outcome in outcomes] == [4.0, 2.0, 3.0]
    for index, bits in enumerate((4, 2, 3)):
        single = compress_(Gptq(16), (alone[index],), gram, (bits,))
        agree = torch.isclose(together[index].weight, alone[index].weight, atol=1e-6).double().mean()
        assert agree > 0.98
        assert outcomes[index].relative_error == pytest.approx(single[0].relative_error, rel=0.05)


def test_relative_error_is_the_output_error_over_the_output() -> None:
    inputs = correlated_inputs(4000)
    modules = linears(16)
    before = modules[0].weight.data.clone()
    [outcome] = compress_(Gptq(16, damping=1e-6), modules, gram_of(inputs), (4,))
    true = output_error(before, modules[0].weight.data, inputs) / output_error(
        before, torch.zeros_like(before), inputs
    )
    assert outcome.relative_error == pytest.approx(true, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"symmetric": False}, {"activation_order": True}])
def test_codes_stand_for_the_weights_in_the_model(dtype: torch.dtype, options: dict[str, Any]) -> None:
    modules = tuple(module.to(dtype) for module in linears(8, 4))
    outcomes = compress_(Gptq(16, **options), modules, gram_of(correlated_inputs()), (2, 8))
    for module, outcome in zip(modules, outcomes, strict=True):
        assert outcome.quantized is not None
        assert torch.equal(outcome.quantized.dequantised(), module.weight.data)
        assert outcome.quantized.scales.dtype == dtype


def test_a_dead_input_is_rounded_as_it_is() -> None:
    inputs = correlated_inputs()
    inputs[:, [5, 40]] = 0.0
    modules, rounded = linears(8), linears(8)
    [outcome] = compress_(Gptq(None), modules, gram_of(inputs), (4,))
    round_(rounded, (4,), None)
    assert torch.equal(modules[0].weight[:, [5, 40]], rounded[0].weight[:, [5, 40]])
    assert outcome.fallbacks == ()
    assert 0 < outcome.relative_error < 1


def test_only_dead_inputs_are_rounded_as_they_are() -> None:
    modules, rounded = linears(8), linears(8)
    [outcome] = compress_(Gptq(16), modules, torch.zeros(N_INPUTS, N_INPUTS), (4,))
    round_(rounded, (4,), 16)
    assert torch.equal(modules[0].weight, rounded[0].weight)
    assert outcome.relative_error == 0.0


def test_a_hessian_that_needs_more_damping_is_counted() -> None:
    gram = gram_of(correlated_inputs(3))  # three tokens cannot span 64 inputs
    gram[3, 3] -= 0.05 * gram.diagonal().mean()  # and rounding may leave a negative eigenvalue
    [outcome] = compress_(Gptq(16), linears(8), gram, (4,))
    assert [fallback.where for fallback in outcome.fallbacks] == ["block.0"]
    assert outcome.fallbacks[0].count >= 1
    assert "damping raised to" in outcome.fallbacks[0].what


@pytest.mark.parametrize("damping", [-0.01, float("nan")])
def test_damping_that_cannot_be_meant_is_refused(damping: float) -> None:
    with pytest.raises(RequestError, match="damping"):
        Gptq(damping=damping)


def test_a_broken_weight_is_named() -> None:
    modules = linears(8, 4)
    modules[1].weight.data[0, 0] = torch.inf
    with pytest.raises(RequestError, match=r"block\.1 holds NaN or Inf"):
        compress_(Gptq(16), modules, gram_of(correlated_inputs()), (4, 4))
