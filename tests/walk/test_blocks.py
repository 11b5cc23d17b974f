"""The walk sees what a plain forward pass sees, once, and leaves no trace."""

from collections.abc import Callable
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from owl_compress.data.windows import TokenWindows
from owl_compress.errors import RequestError
from owl_compress.models.state import evaluation_mode
from owl_compress.models.structure import find_structure
from owl_compress.walk.blocks import BlockVisit, BlockWalk
from owl_compress.walk.capture import capture, map_tensors
from owl_compress.walk.input_statistics import Gram, SecondMoments

CPU = torch.device("cpu")
Make = Callable[..., TokenWindows]


def walk_over(model: nn.Module, windows: TokenWindows, batch_size: int = 1) -> BlockWalk:
    return BlockWalk(model, find_structure(model), windows.batches(batch_size), device=CPU)


def plain_forward(model: nn.Module, ids: Tensor, modules: list[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """First input and output of each of `modules` in one ordinary forward pass over `ids`."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def note(module: nn.Module, arguments: Any, outputs: Any) -> None:
        output = outputs if isinstance(outputs, Tensor) else outputs[0]
        seen[module] = (arguments[0] if arguments else torch.empty(0), output)

    handles = [module.register_forward_hook(note) for module in modules]
    with torch.no_grad():
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return [seen[module] for module in modules]


def hidden_after_each_block(model: nn.Module, windows: TokenWindows, batch_size: int) -> list[Tensor]:
    """From the walk: [sequences, seq_len, hidden] after every block but the last."""
    walk = walk_over(model, windows, batch_size)
    return [torch.cat(walk.hidden) for visit in walk.visits() if visit.site is not walk.structure.blocks[0]]


def visit_all(walk: BlockWalk, do: Callable[[BlockVisit], Any]) -> None:
    with closing(walk.visits()) as visits:
        for visit in visits:
            do(visit)


def traces(model: nn.Module) -> list[Any]:
    """Everything that a walk could leave behind."""
    left: list[Any] = [torch.is_grad_enabled(), getattr(model.config, "use_cache", None)]
    for name, module in model.named_modules():
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        left.append((name, module.training, hooks, "forward" in module.__dict__))
    return left


def test_the_walk_passes_the_models_own_hidden_states(family_model: Any, make_windows: Make) -> None:
    windows = make_windows(3)
    blocks = [block.module for block in find_structure(family_model).blocks]
    expected = [
        torch.cat(outputs)
        for outputs in zip(
            *(
                [output for _, output in plain_forward(family_model, ids, blocks)]
                for ids in windows.batches(1)
            ),
            strict=True,
        )
    ]
    walked = hidden_after_each_block(family_model, windows, 1)
    assert len(walked) == 2
    for ours, theirs in zip(walked, expected[:-1], strict=True):
        assert torch.equal(ours, theirs)  # the same operations on the same numbers


def test_the_last_block_ends_where_the_model_does(family_model: Any, make_windows: Make) -> None:
    windows = make_windows(1)
    last = find_structure(family_model).blocks[-1].module
    ((_, expected),) = plain_forward(family_model, windows.ids, [last])
    walk = walk_over(family_model, windows)
    for visit in walk.visits():
        if visit.site is walk.structure.blocks[-1]:
            visit.advance()
            assert torch.equal(walk.hidden[0], expected)


@pytest.mark.parametrize("batch_size", [2, 3, 5])
def test_the_batch_size_changes_nothing_but_rounding(
    family_model: Any, make_windows: Make, batch_size: int
) -> None:
    windows = make_windows(5)  # leaves a smaller last batch for 2 and 3
    single = hidden_after_each_block(family_model, windows, 1)
    batched = hidden_after_each_block(family_model, windows, batch_size)
    for one, many in zip(single, batched, strict=True):
        # Products of another height may sum in another order: a few float32 roundings of values near 1.
        torch.testing.assert_close(many, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_statistics_are_those_of_a_plain_forward(
    family_model: Any, make_windows: Make, batch_size: int
) -> None:
    windows = make_windows(3)
    linears = list(find_structure(family_model).linears)
    inputs: dict[str, list[Tensor]] = {linear.name: [] for linear in linears}
    for ids in windows.batches(1):
        passed = plain_forward(family_model, ids, [linear.module for linear in linears])
        for linear, (first_input, _) in zip(linears, passed, strict=True):
            inputs[linear.name].append(first_input.reshape(-1, linear.shape[1]).double())
    for kind in (SecondMoments, Gram):
        for visit in walk_over(family_model, windows, batch_size).visits():
            for group in visit.gather(kind):
                assert group.statistic.n_tokens == 3 * 24
                for linear in group.linears:
                    x = torch.cat(inputs[linear.name])  # [tokens, in]
                    # float32 squares of 72 values, and rounding of the activations themselves
                    torch.testing.assert_close(
                        group.statistic.second_moments, x.square().sum(0), rtol=1e-4, atol=1e-6
                    )
                    if isinstance(group.statistic, Gram):
                        gram = (x.t() @ x).float()
                        scale = float(gram.diagonal().max())
                        torch.testing.assert_close(group.statistic.matrix, gram, rtol=1e-4, atol=1e-5 * scale)


def test_linears_that_read_the_same_input_share_one_statistic(family_model: Any, make_windows: Make) -> None:
    windows = make_windows(2)
    for visit in walk_over(family_model, windows).visits():
        passed = plain_forward(
            family_model, windows.ids[:1], [linear.module for linear in visit.site.linears]
        )
        inputs = {linear.name: x for linear, (x, _) in zip(visit.site.linears, passed, strict=True)}
        groups = visit.gather(SecondMoments)
        together = {frozenset(linear.name for linear in group.linears) for group in groups}
        # In a random model two linears read equal numbers only if they read the same tensor.
        expected = {
            frozenset(other for other, y in inputs.items() if x.shape == y.shape and torch.equal(x, y))
            for x in inputs.values()
        }
        assert together == expected


def test_llama_needs_four_statistics_for_seven_linears(
    tiny_llama: LlamaForCausalLM, make_windows: Make
) -> None:
    for visit in walk_over(tiny_llama, make_windows(2)).visits():
        shared = [
            [linear.role for linear in group.linears] for group in visit.gather(SecondMoments, advance=True)
        ]
        assert shared == [["attn.q", "attn.k", "attn.v"], ["attn.o"], ["mlp.gate", "mlp.up"], ["mlp.down"]]


def test_only_the_named_linears_are_gathered(tiny_llama: LlamaForCausalLM, make_windows: Make) -> None:
    for visit in walk_over(tiny_llama, make_windows(1)).visits():
        names = {f"{visit.site.name}.self_attn.k_proj", f"{visit.site.name}.mlp.down_proj"}
        groups = visit.gather(SecondMoments, names)
        assert [[linear.name for linear in group.linears] for group in groups] == [
            [n] for n in sorted(names, key=len, reverse=True)
        ]


def test_gathering_changes_nothing_that_is_gathered_next(family_model: Any, make_windows: Make) -> None:
    for visit in walk_over(family_model, make_windows(2)).visits():
        first, second = visit.gather(SecondMoments), visit.gather(SecondMoments)
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a.statistic.second_moments, b.statistic.second_moments)


def test_blocks_of_gemma3_keep_their_own_masks_and_rotary_embeddings(
    make_model: Callable[[str], Any], make_windows: Make
) -> None:
    model, windows = make_model("gemma3"), make_windows(1)
    blocks = find_structure(model).blocks
    with torch.no_grad(), evaluation_mode(model):
        (captured,) = capture(model, blocks, windows.batches(1))
    sliding, full, sliding_again = captured.arguments
    for name in ("attention_mask", "position_embeddings"):
        ours: list[list[Tensor]] = []
        for call in (sliding, full, sliding_again):
            found: list[Tensor] = []
            map_tensors(call.named.get(name), lambda tensor, found=found: found.append(tensor) or tensor)
            ours.append(found)
        assert [id(t) for t in ours[0]] == [id(t) for t in ours[2]]
        assert not _all_equal(ours[0], ours[1]), name


def _all_equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_masks_and_rotary_embeddings_are_held_once_for_all_batches(
    family_model: Any, make_windows: Make
) -> None:
    windows = make_windows(6)
    held = []
    with torch.no_grad(), evaluation_mode(family_model):
        for captured in capture(family_model, find_structure(family_model).blocks, windows.batches(1)):
            tensors: dict[int, Tensor] = {}
            for call in captured.arguments:
                map_tensors(call, lambda tensor, tensors=tensors: tensors.setdefault(id(tensor), tensor))
            held.append(tensors)
    assert all(tensors.keys() == held[0].keys() for tensors in held)


def test_measuring_takes_one_forward_per_block_and_batch(
    family_model: Any, make_windows: Make, forwards_counted: Callable[..., Any]
) -> None:
    with forwards_counted(family_model) as counts:
        for visit in walk_over(family_model, make_windows(5), batch_size=2).visits():
            visit.gather(SecondMoments, advance=True)
    probe, *rest = counts[0]
    assert probe == 1  # one token tells what a block returns
    assert [rest, *counts[1:]] == [[24, 24, 24]] * 3


def test_compressing_takes_two_forwards_but_one_for_the_last_block(
    family_model: Any, make_windows: Make, forwards_counted: Callable[..., Any]
) -> None:
    with forwards_counted(family_model) as counts:
        for visit in walk_over(family_model, make_windows(3)).visits():
            visit.gather(SecondMoments)
    assert [counts[0][1:], *counts[1:]] == [[24] * 6, [24] * 6, [24] * 3]


@pytest.mark.parametrize("kind", [SecondMoments, Gram])
def test_gathering_alone_ends_at_the_last_linears_input(
    kind: type[SecondMoments | Gram], tiny_llama: LlamaForCausalLM, make_windows: Make
) -> None:
    def gathered(*, advance: bool) -> tuple[list[Tensor], int]:
        down: list[int] = []
        with closing(walk_over(tiny_llama, make_windows(4)).visits()) as visits:
            visit = next(visits)
            handle = visit.site.linears[-1].module.register_forward_hook(lambda *_: down.append(1))
            groups = visit.gather(kind, advance=advance)
            handle.remove()
        return [group.statistic.second_moments for group in groups], len(down)

    whole, short = gathered(advance=True), gathered(advance=False)
    assert (whole[1], short[1]) == (4, 1)  # the first batch shows which linear is the last
    for found, expected in zip(short[0], whole[0], strict=True):
        assert torch.equal(found, expected)


def test_a_linear_that_is_called_twice_gets_both_inputs(
    tiny_llama: LlamaForCausalLM, make_windows: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlp = tiny_llama.model.layers[0].mlp
    monkeypatch.setattr(mlp, "forward", lambda x: type(mlp).forward(mlp, x) + type(mlp).forward(mlp, 2 * x))
    with closing(walk_over(tiny_llama, make_windows(3)).visits()) as visits:
        down = next(visits).gather(SecondMoments)[-1]
    assert down.linears[0].name.endswith("down_proj")
    assert down.statistic.n_tokens == 2 * 3 * 24


def test_a_walk_without_text_runs_nothing(family_model: Any, forwards_counted: Callable[..., Any]) -> None:
    with forwards_counted(family_model) as counts:
        walk = BlockWalk(family_model, find_structure(family_model), (), device=CPU)
        names = [visit.site.name for visit in walk.visits()]
    assert names == [block.name for block in find_structure(family_model).blocks]
    assert counts == [[], [], []]


def test_nothing_is_left_behind(family_model: Any, make_windows: Make) -> None:
    family_model.train()
    list(family_model.modules())[-1].eval()
    before = traces(family_model)
    walk = walk_over(family_model, make_windows(2))
    for visit in walk.visits():
        visit.gather(SecondMoments, advance=True)
    assert traces(family_model) == before
    assert walk.hidden == []


def test_nothing_is_left_behind_after_an_error_in_the_middle(family_model: Any, make_windows: Make) -> None:
    family_model.train()
    before = traces(family_model)
    walk = walk_over(family_model, make_windows(2))

    def fail_at_second(visit: BlockVisit) -> None:
        if visit.site is walk.structure.blocks[1]:
            raise KeyError(visit.site.name)

    with pytest.raises(KeyError):
        visit_all(walk, fail_at_second)
    assert traces(family_model) == before


def test_nothing_is_left_behind_after_an_error_in_a_block(
    make_model: Callable[[str], Any], make_windows: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama").train()
    before = traces(model)

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    def gather_with_broken_mlp(visit: BlockVisit) -> None:
        monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", fail)
        visit.gather(SecondMoments)

    with pytest.raises(MemoryError):
        visit_all(walk_over(model, make_windows(2)), gather_with_broken_mlp)
    assert traces(model) == before


def test_a_forward_that_a_block_has_of_its_own_comes_back(
    tiny_llama: LlamaForCausalLM, make_windows: Make
) -> None:
    # accelerate hangs its hooks on a model by giving instances a forward of their own
    block = tiny_llama.model.layers[1]
    calls = []
    original = block.forward

    def own(*positional: Any, **named: Any) -> Any:
        calls.append(1)
        return original(*positional, **named)

    block.forward = own
    for visit in walk_over(tiny_llama, make_windows(1)).visits():
        visit.gather(SecondMoments, advance=True)
    assert block.__dict__["forward"] is own
    assert len(calls) == 1


def test_dropout_sleeps_during_the_walk(make_model: Callable[[str], Any], make_windows: Make) -> None:
    windows = make_windows(2)
    model = make_model("gpt2")
    assert model.config.resid_pdrop == 0.1
    expected = hidden_after_each_block(model, windows, 1)
    model.train()
    for ours, theirs in zip(hidden_after_each_block(model, windows, 1), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert model.training


def test_activations_may_be_kept_elsewhere(tiny_llama: LlamaForCausalLM, make_windows: Make) -> None:
    structure = find_structure(tiny_llama)
    walk = BlockWalk(
        tiny_llama, structure, make_windows(2).batches(1), device=CPU, keep_on=torch.device("meta")
    )
    visits = walk.visits()
    assert next(visits).site is structure.blocks[0]
    assert [hidden.device.type for hidden in walk.hidden] == ["meta", "meta"]
    visits.close()
    assert walk.hidden == []


def test_a_linear_that_no_token_reached_is_named(
    make_model: Callable[[str], Any], make_windows: Make
) -> None:
    model = make_model("unknown")
    model.stages[1].spare = nn.Linear(32, 32)
    walk = walk_over(model, make_windows(1))
    with pytest.raises(RequestError, match=r"no token reached stages\.1\.spare"):
        visit_all(walk, lambda visit: visit.gather(SecondMoments))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_no_numbers_name_the_linear(
    tiny_llama: LlamaForCausalLM, make_windows: Make, bad: float
) -> None:
    tiny_llama.model.layers[1].post_attention_layernorm.weight.data[3] = bad
    message = r"the inputs of model\.layers\.1\.mlp\.gate_proj hold NaN or Inf.*--dtype"
    with closing(walk_over(tiny_llama, make_windows(1)).visits()) as visits:
        next(visits).gather(Gram, advance=True)
        with pytest.raises(RequestError, match=message):
            next(visits).gather(Gram)


def test_a_model_that_does_not_call_its_blocks_is_refused(
    make_model: Callable[[str], Any], make_windows: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("unknown")
    monkeypatch.setattr(type(model), "forward", lambda _self, input_ids: SimpleNamespace(logits=input_ids))
    with pytest.raises(RequestError, match="does not call its blocks"):
        next(walk_over(model, make_windows(1)).visits())
