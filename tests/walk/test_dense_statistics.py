"""What is kept of the dense model's inputs: the same as gathering them block by block, for any copy of it."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from owl_compress.data.windows import TokenWindows
from owl_compress.errors import RequestError
from owl_compress.models.structure import find_structure
from owl_compress.walk.blocks import BlockWalk
from owl_compress.walk.dense_statistics import DenseStatistics, gather_dense
from owl_compress.walk.input_statistics import SecondMoments

Make = Callable[..., TokenWindows]
CPU = torch.device("cpu")


def gathered(model: Any, windows: TokenWindows, names: set[str] | None = None) -> DenseStatistics:
    structure = find_structure(model)
    walk = BlockWalk(model, structure, windows.batches(1), device=CPU)
    names = names or {linear.name for linear in structure.linears}
    return gather_dense(walk, windows.record, names)


def test_they_are_the_norms_of_a_plain_forward_pass(
    family_model: Any, make_windows: Make, wanda_scores: Callable[..., dict[str, Tensor]]
) -> None:
    windows, structure = make_windows(2), find_structure(family_model)
    kept = gathered(family_model, windows)
    scores = wanda_scores(family_model, windows, structure.linears)
    for site in structure.blocks:
        names = [linear.name for linear in site.linears]
        groups = kept.of_block(site, names, CPU)
        assert sorted(linear.name for group in groups for linear in group.linears) == sorted(names)
        for group in groups:
            assert group.statistic.n_tokens == 48
            for linear in group.linears:
                found = linear.weight.double().abs() * group.statistic.second_moments.sqrt()
                torch.testing.assert_close(found, scores[linear.name], rtol=1e-5, atol=1e-7)


def test_a_copy_of_the_model_is_served_with_its_own_linears(make_model: Any, make_windows: Make) -> None:
    model = make_model("llama")
    kept = gathered(model, make_windows(2))
    site = find_structure(deepcopy(model)).blocks[1]
    groups = kept.of_block(site, {linear.name for linear in site.linears}, CPU)
    assert [len(group.linears) for group in groups] == [3, 1, 2, 1]  # q/k/v, o, gate/up, down
    assert {linear.module for group in groups for linear in group.linears} == {
        linear.module for linear in site.linears
    }


def test_a_part_of_the_linears_is_what_gathering_for_that_part_gives(
    make_model: Any, make_windows: Make
) -> None:
    model, windows = make_model("llama"), make_windows(2)
    structure = find_structure(model)
    some = {"model.layers.1.self_attn.k_proj", "model.layers.1.mlp.up_proj", "model.layers.2.mlp.down_proj"}
    whole, part = gathered(model, windows), gathered(model, windows, some)
    assert set(part.blocks) == {"model.layers.1", "model.layers.2"}
    for site in structure.blocks[1:]:
        pairs = zip(whole.of_block(site, some, CPU), part.of_block(site, some, CPU), strict=True)
        for one, other in pairs:
            assert one.linears == other.linears
            assert torch.equal(one.statistic.second_moments, other.statistic.second_moments)


def test_a_linear_that_no_token_reached_is_refused_by_name(make_model: Any, make_windows: Make) -> None:
    model = make_model("llama")
    missing = "model.layers.1.mlp.up_proj"
    names = {linear.name for linear in find_structure(model).linears}
    kept = gathered(model, make_windows(1), names - {missing})
    site = find_structure(model).blocks[1]
    with pytest.raises(RequestError, match=f"^no token reached {missing}: .* leave it out with --skip$"):
        kept.of_block(site, names, CPU)
    assert kept.of_block(site, names - {missing}, CPU)


def test_statistics_of_a_model_of_another_size_are_refused(make_model: Any, make_windows: Make) -> None:
    model = make_model("llama")
    kept, site = gathered(model, make_windows(1)), find_structure(model).blocks[0]
    halved = {
        block: tuple(
            replace(group, moments=SecondMoments(group.moments.second_moments[::2])) for group in groups
        )
        for block, groups in kept.blocks.items()
    }
    with pytest.raises(RequestError, match=r"q_proj has 32 inputs, and 16 in the statistics of the dense"):
        replace(kept, blocks=halved).of_block(site, {linear.name for linear in site.linears}, CPU)
