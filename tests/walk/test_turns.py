"""Linears told of their inputs in turn: what a forward pass of the model as it is by then hands to them."""

from collections.abc import Callable
from contextlib import closing
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from owl_compress.data.windows import TokenWindows
from owl_compress.errors import RequestError
from owl_compress.models.structure import LinearSite, find_structure
from owl_compress.walk import blocks
from owl_compress.walk.blocks import BlockVisit, BlockWalk
from owl_compress.walk.gathering import LinearGroup
from owl_compress.walk.input_statistics import Gram, SecondMoments
from owl_compress.walk.turns import bytes_held

CPU = torch.device("cpu")
Make = Callable[..., TokenWindows]
MakeModel = Callable[[str], Any]


def names_of(visit: BlockVisit) -> list[str]:
    return [linear.name for linear in visit.site.linears]


def walk_in_turns(
    model: nn.Module, batches: list[Tensor], do: Callable[[LinearGroup], None], statistic: type[Any] = Gram
) -> None:
    walk = BlockWalk(model, find_structure(model), batches, device=CPU, may_widen=True)
    with closing(walk.visits()) as visits:
        for visit in visits:
            with closing(visit.gather_in_turns(statistic, names_of(visit))) as groups:
                for group in groups:
                    do(group)


def shrink_(group: LinearGroup) -> None:
    for linear in group.linears:
        linear.weight.mul_(0.7)


def inputs_in(model: nn.Module, linear: LinearSite, batches: list[Tensor]) -> Tensor:
    """What a linear of the same name reads in plain forward passes of `model`, [tokens, in]."""
    found: list[Tensor] = []
    module = model.get_submodule(linear.name)
    handle = module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].flatten(0, -2)))
    with torch.no_grad():
        for ids in batches:
            model(input_ids=ids)
    handle.remove()
    return torch.cat(found)


def test_each_turn_reads_what_the_model_hands_to_it_by_then(family_model: Any, make_windows: Make) -> None:
    batches, twin = make_windows(3).batches(2), deepcopy(family_model).eval()
    turns: list[tuple[str, ...]] = []

    def check(group: LinearGroup) -> None:
        twin.load_state_dict(family_model.state_dict())
        for linear in group.linears:
            read = inputs_in(twin, linear, batches)
            torch.testing.assert_close(group.statistic.matrix, read.T @ read, rtol=1e-4, atol=1e-4)  # type: ignore[attr-defined]
        assert group.statistic.n_tokens == sum(ids.numel() for ids in batches)
        turns.append(tuple(linear.name for linear in group.linears))
        shrink_(group)

    walk_in_turns(family_model, batches, check)
    linears = [linear.name for site in find_structure(family_model).blocks for linear in site.linears]
    assert sorted(name for turn in turns for name in turn) == sorted(linears)


def test_passes_that_begin_anew_for_every_turn_tell_the_same_to_the_last_bit(
    family_model: Any, make_windows: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, found = make_windows(3).batches(1), []
    for room in (None, 0):
        monkeypatch.setattr(blocks, "room_beside", lambda _, room=room: room)
        matrices: list[Tensor] = []

        def note(group: LinearGroup, matrices: list[Tensor] = matrices) -> None:
            matrices.append(group.statistic.matrix.clone())  # type: ignore[attr-defined]
            shrink_(group)

        walk_in_turns(deepcopy(family_model), batches, note)
        found.append(matrices)
    assert len(found[0]) == len(found[1])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_one_pass_serves_all_turns_and_ends_in_the_next_blocks_inputs(
    make_model: MakeModel, make_windows: Make, forwards_counted: Callable[..., Any]
) -> None:
    model, windows = make_model("llama"), make_windows(3)
    with forwards_counted(model) as counts:
        walk_in_turns(model, windows.batches(1), shrink_)
    # Turns are found on one batch of the first block, which is looked at with a single token before.
    assert counts == [[1, *[24] * 4], [24] * 3, [24] * 3]


def test_passes_that_are_left_in_the_middle_leave_nothing_behind(
    make_model: MakeModel, make_windows: Make
) -> None:
    model = make_model("llama")
    with pytest.raises(ZeroDivisionError):
        walk_in_turns(model, make_windows(3).batches(1), lambda _: 1 // 0)  # type: ignore[arg-type]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_bfloat16_block_keeps_what_was_changed_between_turns(
    make_model: MakeModel, make_windows: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    model = make_model("llama").to(torch.bfloat16)
    expected = {name: (0.7 * one).to(one.dtype) for name, one in model.named_parameters() if "proj" in name}
    read_in: set[torch.dtype] = set()
    for site in find_structure(model).blocks:
        for linear in site.linears:
            linear.module.register_forward_pre_hook(lambda _, inputs: read_in.add(inputs[0].dtype))
    walk_in_turns(model, make_windows(2).batches(1), shrink_, SecondMoments)
    assert torch.float32 in read_in
    for name, weight in expected.items():
        torch.testing.assert_close(model.get_parameter(name).data, weight, rtol=1e-2, atol=0.0)


def test_nan_in_an_input_is_told_by_the_linear_that_reads_it(
    make_model: MakeModel, make_windows: Make
) -> None:
    model = make_model("llama")

    def spoil_(group: LinearGroup) -> None:
        if group.linears[0].name.endswith("layers.1.mlp.gate_proj"):
            group.linears[0].weight.fill_(float("nan"))

    with pytest.raises(RequestError, match=r"inputs of model.layers.1.mlp.down_proj hold NaN or Inf"):
        walk_in_turns(model, make_windows(2).batches(1), spoil_)


def test_a_linear_that_is_called_twice_has_no_turn(make_model: MakeModel, make_windows: Make) -> None:
    model = make_model("llama")
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda hidden: mlp.down_proj(mlp.up_proj(mlp.up_proj(hidden)[..., : hidden.shape[-1]]))
    with pytest.raises(RequestError, match=r"layers.1.*not called once .* use --statistics sequential"):
        walk_in_turns(model, make_windows(2).batches(1), shrink_)


def test_what_stands_still_is_the_stream_and_the_widest_input(make_model: MakeModel) -> None:
    linears = find_structure(make_model("llama")).blocks[0].linears
    hidden, widest = linears[0].shape[1], max(linear.shape[1] for linear in linears)
    assert bytes_held(linears, hidden, 10, 4) == 10 * (hidden + widest) * 4
