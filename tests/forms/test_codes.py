"""Codes come out of their packing as they went in, and take no more memory than their bits."""

import re

import pytest
import torch
from torch import Tensor

from owl_compress.forms.codes import PackedCodes, QuantizedWeight, code_range

BITS = range(1, 9)


def any_codes(shape: tuple[int, ...], bits: int) -> Tensor:
    low, high = code_range(bits)
    codes = torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(bits))
    codes.view(-1)[0], codes.view(-1)[-1] = low, high
    return codes.to(torch.int8)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(1, 2), (3, 7), (16, 64), (5, 129)])
def test_unpacked_codes_are_the_codes(shape: tuple[int, int], bits: int) -> None:
    codes = any_codes(shape, bits)
    kept = codes.clone()
    unpacked = PackedCodes.of(codes, bits).unpacked()
    assert unpacked.dtype is torch.int8
    assert torch.equal(unpacked, kept)
    assert torch.equal(codes, kept)


@pytest.mark.parametrize("bits", BITS)
def test_packed_codes_take_as_many_bits_as_are_said(bits: int) -> None:
    packed = PackedCodes.of(any_codes((16, 64), bits), bits)
    assert 8 * sum(field.numel() * field.element_size() for field in packed.fields) == 16 * 64 * bits
    # A field may be a view of something larger; what it holds on to is what counts.
    assert 8 * sum(field.untyped_storage().nbytes() for field in packed.fields) == 16 * 64 * bits


def test_packing_goes_by_bits_not_by_the_codes_that_occur() -> None:
    codes = torch.zeros(2, 8, dtype=torch.int8)
    assert torch.equal(PackedCodes.of(codes, 3).unpacked(), codes)


def test_a_quantized_weight_is_the_product_of_its_codes_and_scales() -> None:
    codes, scales = any_codes((4, 8), 3), torch.rand(4, 2) + 0.5
    zeros = any_codes((4, 2), 3)
    weight = QuantizedWeight(codes, scales, zeros, 3, 4)
    expected = (codes - zeros.repeat_interleave(4, dim=1)).float() * scales.repeat_interleave(4, dim=1)
    for one in (weight, weight.on_host()):
        assert torch.equal(one.dequantised(), expected)
        assert torch.equal(one.codes, codes)
        assert one.shape == (4, 8)
        assert one.n_bits == 4 * 8 * 3 + 4 * 2 * (32 + 3)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("zero_points", [None, any_codes((5, 3), 2)], ids=["symmetric", "zero points"])
def test_one_put_together_of_its_parts_is_the_same_and_shares_them(
    bits: int, zero_points: Tensor | None
) -> None:
    weight = QuantizedWeight(any_codes((5, 129), bits), torch.rand(5, 3), zero_points, bits, 43)
    parts = weight.parts
    again = QuantizedWeight.of_parts(parts, weight.shape, bits, 43)
    assert torch.equal(again.codes, weight.codes)
    assert torch.equal(again.dequantised(), weight.dequantised())
    assert {name: part.data_ptr() for name, part in again.parts.items()} == {
        name: part.data_ptr() for name, part in parts.items()
    }
    for name in parts.keys() - {"zero_points"}:
        with pytest.raises(KeyError, match=re.escape(name)):
            QuantizedWeight.of_parts(
                {one: part for one, part in parts.items() if one != name}, weight.shape, bits, 43
            )


@pytest.mark.parametrize("code", [-5, 4])
def test_codes_outside_their_range_are_refused(code: int) -> None:
    with pytest.raises(ValueError, match="do not fit 3 bits"):
        QuantizedWeight(torch.tensor([[code]], dtype=torch.int8), torch.ones(1, 1), None, 3, None)
