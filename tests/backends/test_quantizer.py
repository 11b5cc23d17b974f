"""The grid of codes: against brute force, the stated formula, and bad input."""

import pytest
import torch
from torch import Tensor, nn

from owl_compress.backends.quantizer import GridRule, check_block, round_to_nearest
from owl_compress.compression.tasks import BlockTask, GroupTask, LinearTask
from owl_compress.errors import RequestError
from owl_compress.forms.codes import CodeFormat, QuantizedWeight, code_range
from owl_compress.models.structure import BlockSite, LinearSite


def random_weight(rows: int = 6, columns: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def quantize(
    weight: Tensor, bits: int, *, group_size: int | None = 8, symmetric: bool = True, mse: bool = False
) -> QuantizedWeight:
    return round_to_nearest(weight.float(), bits, GridRule(symmetric, mse, weight.dtype), group_size)


def squared_error(quantized: QuantizedWeight, weight: Tensor) -> Tensor:
    """Summed over each group, shape [out, groups]."""
    error = (quantized.dequantised().double() - weight.double()).square()
    return error.reshape(*quantized.scales.shape, -1).sum(dim=2)


def block_of(*linears: nn.Linear, bits: float = 4.0) -> BlockTask:
    sites = tuple(LinearSite(f"block.{i}", "other", linear) for i, linear in enumerate(linears))
    groups = tuple(GroupTask((LinearTask(site, bits),), None) for site in sites)
    return BlockTask(BlockSite("block", nn.ModuleList(linears), sites), groups, None)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [8, None])
def test_every_weight_gets_the_nearest_code(bits: int, symmetric: bool, group_size: int | None) -> None:
    weight = random_weight()
    quantized = quantize(weight, bits, group_size=group_size, symmetric=symmetric)
    low, high = code_range(bits)
    size = group_size or weight.shape[1]
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            group = column // size
            zero = 0 if quantized.zero_points is None else int(quantized.zero_points[row, group])
            levels = (torch.arange(low, high + 1) - zero).float() * quantized.scales[row, group]
            nearest = (levels - weight[row, column]).abs().min()
            got = (quantized.dequantised()[row, column] - weight[row, column]).abs()
            assert got <= nearest + 1e-6


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_symmetric_is_the_reference_formula_exactly(bits: int) -> None:
    weight = random_weight()
    groups = weight.reshape(6, 4, 8)
    scales = groups.abs().amax(dim=2, keepdim=True) / (2 ** (bits - 1) - 1)
    codes = torch.round(groups / scales).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert torch.equal(quantize(weight, bits).dequantised(), (codes * scales).reshape(6, 32))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_asymmetric_spans_the_range_and_keeps_zero(bits: int) -> None:
    weight = random_weight().abs() + 0.5  # one-sided: a symmetric grid would waste half its codes
    weight[:, ::8] = 0.0
    quantized = quantize(weight, bits, symmetric=False)
    assert torch.equal(quantized.dequantised()[:, ::8], torch.zeros(6, 4))
    assert squared_error(quantized, weight).sum() < squared_error(quantize(weight, bits), weight).sum()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_mse_search_is_no_worse_in_any_group_and_better_on_the_whole(bits: int, symmetric: bool) -> None:
    weight = random_weight(16, 128)
    plain, searched = (
        squared_error(quantize(weight, bits, group_size=64, symmetric=symmetric, mse=mse), weight)
        for mse in (False, True)
    )
    assert (searched <= plain * (1 + 1e-5)).all()
    assert searched.sum() < 0.98 * plain.sum()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("mse", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_groups_of_zeros_stay_zero_with_scale_one(symmetric: bool, mse: bool, dtype: torch.dtype) -> None:
    weight = random_weight().to(dtype)
    weight[2, 8:16] = 0.0
    quantized = quantize(weight, 4, symmetric=symmetric, mse=mse)
    assert not quantized.dequantised()[2, 8:16].any()
    assert quantized.scales[2, 1] == 1.0
    assert (quantized.scales > 0).all()


def test_scales_too_small_for_their_type_become_one() -> None:
    weight = torch.full(
        (1, 8), 6e-8, dtype=torch.float16
    )  # the smallest float16 there is; 1/127 of it is none
    quantized = quantize(weight, 8)
    assert quantized.scales.item() == 1.0
    assert not quantized.dequantised().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_half_precision_scales_are_rounded_before_the_codes_are_chosen(dtype: torch.dtype, bits: int) -> None:
    weight = random_weight().to(dtype)
    quantized = quantize(weight, bits)
    assert quantized.scales.dtype == quantized.dequantised().dtype == dtype
    scales = quantized.scales.float().repeat_interleave(8, dim=1)
    low, high = code_range(bits)
    assert torch.equal(quantized.codes, torch.round(weight.float() / scales).clamp(low, high).to(torch.int8))


def test_codes_that_need_more_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit 3 bits"):
        QuantizedWeight(torch.tensor([[4]], dtype=torch.int8), torch.ones(1, 1), None, 3, None)


@pytest.mark.parametrize(("symmetric", "of_group"), [(True, 32), (False, 32 + 3)])
def test_bits_count_codes_scales_and_zero_points(symmetric: bool, of_group: int) -> None:
    assert quantize(random_weight(), 3, symmetric=symmetric).n_bits == 6 * 32 * 3 + 6 * 4 * of_group


def test_what_cannot_be_quantized_is_refused_by_name_and_left_alone() -> None:
    good, odd, broken = nn.Linear(32, 4), nn.Linear(24, 4), nn.Linear(32, 4)
    broken.weight.data[1, 2] = torch.nan
    for task, words in (
        (block_of(good, odd), r"block\.1 has 24 inputs, which groups of 16 do not divide.*--group-size"),
        (block_of(good, broken), r"block\.1 holds NaN or Inf"),
        (block_of(good, bits=2.5), r"block\.0 has 2\.5 bits"),
        (block_of(good, bits=9.0), r"block\.0 has 9 bits.*from 2 to 8"),
    ):
        with pytest.raises(RequestError, match=words):
            check_block(task, CodeFormat(16, symmetric=True))
    check_block(block_of(good, odd), CodeFormat(None, symmetric=True))
