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


def test_a_linear_that_is_called_twice_comes_last_and_has_no_turn(
    make_model: MakeModel,
    make_windows: Make,
    monkeypatch: pytest.MonkeyPatch,
    up_called_twice: Callable[..., Tensor],
) -> None:
    model, found = make_model("llama"), dict[str, bool]()

    monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", up_called_twice)
    walk_in_turns(
        model, make_windows(2).batches(1), lambda group: found.update({group.linears[0].name: group.has_turn})
    )
    assert [name.rpartition(".")[2] for name in found][:5] == [
        "q_proj",
        "o_proj",
        "gate_proj",
        "down_proj",
        "up_proj",
    ]
    assert {name for name, has_turn in found.items() if not has_turn} == {
        f"model.layers.{block}.mlp.up_proj" for block in range(3)
    }


class Experts(nn.Module):
    """Two small networks, of which a batch takes one or both, by its last token."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in range(2))

    def forward(self, hidden: Tensor) -> Tensor:
        chosen = self.experts[: 1 + int(hidden[0, -1].argmax()) % 2]
        return torch.stack([expert(hidden + place) for place, expert in enumerate(chosen)]).sum(dim=0)


def test_linears_that_some_batches_pass_by_are_told_together_after_the_others(
    make_model: MakeModel, make_windows: Make
) -> None:
    model = make_model("llama")
    for layer in model.model.layers:
        layer.mlp = Experts(model.config.hidden_size)
    turns, seen = dict[str, bool](), dict[str, int]()

    def note(group: LinearGroup) -> None:
        for linear in group.linears:
            assert linear.name not in turns, "told once"
            turns[linear.name], seen[linear.name] = group.has_turn, group.statistic.n_tokens
        shrink_(group)

    windows = make_windows(12)
    walk_in_turns(model, windows.batches(1), note)
    assert sorted(turns) == sorted(
        linear.name for site in find_structure(model).blocks for linear in site.linears
    )
    assert all(turns[name] for name in turns if "self_attn" in name)
    sometimes = {name for name, n_tokens in seen.items() if n_tokens < windows.ids.numel()}
    assert sometimes, "a batch passes an expert by"
    assert not any(turns[name] for name in sometimes)


@pytest.mark.parametrize("context", [torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_nobody_stands_still_inside_of_what_torch_keeps_for_the_thread(
    make_model: MakeModel, make_windows: Make, context: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, states = make_model("llama"), []
    plain = type(model.model.layers[0].mlp).forward

    def inside(self: Any, hidden: Tensor) -> Tensor:
        with context():
            outputs: Tensor = plain(self, hidden)
        return outputs.to(hidden.dtype)

    monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", inside)

    def note(group: LinearGroup) -> None:
        states.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), group.has_turn))
        shrink_(group)

    walk_in_turns(model, make_windows(2).batches(1), note)
    assert {*states} == {(False, False, True)}
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_who_calls_a_linear_while_passes_stand_still_is_let_through(
    make_model: MakeModel, make_windows: Make
) -> None:
    model, called = make_model("llama"), []

    def call(group: LinearGroup) -> None:
        linear = group.linears[0]
        called.append(linear.module(torch.zeros(1, linear.shape[1])))

    walk_in_turns(model, make_windows(2).batches(1), call)
    assert len(called) == 12


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_a_pass_holds_is_counted_where_it_stands(
    make_model: MakeModel, make_windows: Make, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, held = make_model("llama"), []
    model.set_attn_implementation(attention)
    plain = BlockWalk.holds_passes
    monkeypatch.setattr(
        BlockWalk, "holds_passes", lambda self, turns: held.append(turns.held_bytes) or plain(self, turns)
    )
    windows = make_windows(2)
    walk_in_turns(model, windows.batches(1), shrink_)
    n_tokens, config = windows.record.seq_len, model.config
    at_down = n_tokens * (config.hidden_size + config.intermediate_size) * 4
    at_output = n_tokens * config.num_attention_heads * n_tokens * 4 if attention == "eager" else 0
    beside = n_tokens * 5 * config.hidden_size * 4  # the stream, what was normed, queries, keys and values
    assert max(at_down, at_output) <= held[0] <= max(at_down, at_output + beside)
