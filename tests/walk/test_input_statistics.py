"""Sums over the inputs of a linear, held against the whole product of all tokens."""

import pytest
import torch
from torch import Tensor

from owl_compress.walk.input_statistics import Gram, MomentsAndGram, SecondMoments

CPU = torch.device("cpu")
WIDTHS = (1, 24, 128, 144, 250, 256, 272, 320, 576, 770, 1024, 1040, 1536)
"""Narrower than a strip, a strip, several, with and without a rest, and one that is not cut into strips."""


def tokens(n: int, width: int, seed: int) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("n_tokens", [7, 64])
def test_a_gram_matrix_has_the_bits_of_the_whole_product(width: int, n_tokens: int) -> None:
    gram, whole = Gram.empty(width, CPU), torch.zeros(width, width)
    for seed in range(3):
        inputs = tokens(n_tokens, width, seed)
        gram.add(inputs)
        whole.addmm_(inputs.t(), inputs)
    assert gram.n_tokens == 3 * n_tokens
    assert torch.equal(gram.matrix, whole)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_energy_of_outputs_is_that_of_all_tokens(width: int) -> None:
    gram, inputs, weight_t = Gram.empty(width, CPU), tokens(30, width, 1), tokens(width, 5, 2)
    gram.add(inputs)
    exact = (inputs.double() @ weight_t.double()).square().sum(dim=0)
    torch.testing.assert_close(gram.output_energy(weight_t), exact, rtol=1e-4, atol=1e-6)
    assert gram.output_energy(weight_t[:, :0]).shape == (0,)


def test_reading_a_gram_matrix_on_the_way_changes_nothing() -> None:
    read, unread = Gram.empty(576, CPU), Gram.empty(576, CPU)
    for seed in range(3):
        read.add(tokens(9, 576, seed))
        unread.add(tokens(9, 576, seed))
        assert torch.equal(read.matrix, read.matrix.t())
    assert torch.equal(read.matrix, unread.matrix)


def test_half_precision_is_summed_in_float32() -> None:
    inputs = tokens(20, 272, 0).to(torch.bfloat16)
    gram = Gram.empty(272, CPU)
    gram.add(inputs)
    exact = inputs.double().t() @ inputs.double()
    torch.testing.assert_close(gram.matrix.double(), exact, rtol=1e-5, atol=1e-4)


def test_second_moments_are_the_diagonal() -> None:
    both = MomentsAndGram.empty(320, CPU)
    for seed in range(2):
        both.add(tokens(11, 320, seed))
    exact = torch.cat([tokens(11, 320, seed) for seed in range(2)]).double().square().sum(dim=0)
    torch.testing.assert_close(both.gram.second_moments, exact, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(both.second_moments, exact, rtol=1e-6, atol=0.0)
    assert torch.equal(SecondMoments.of(both, CPU).second_moments, both.second_moments)


def test_sums_of_another_process_are_mirrored_where_none_were_taken_here() -> None:
    here, elsewhere = Gram.empty(256, CPU), Gram.empty(256, CPU)
    elsewhere.add(tokens(30, 256, 1))
    here.sums[0].add_(elsewhere.sums[0])
    assert torch.equal(here.matrix, elsewhere.matrix)
