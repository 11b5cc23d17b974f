"""Salience taken block by block is that of autograd through the whole model, and leaves no trace."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from owl_compress.data.windows import TokenWindows
from owl_compress.errors import RequestError
from owl_compress.models.structure import find_structure
from owl_compress.walk.gradients import Salience, measure_salience

Make = Callable[..., TokenWindows]
SUMS = ("out_element", "in_element", "out_vector", "in_vector")


def through_the_whole_model(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """w * dL/dw of every linear, [out, in], with transformers' own loss where the model has one."""
    if hasattr(model, "loss_function"):
        loss = model(input_ids=ids, labels=ids).loss
    else:
        logits = model(input_ids=ids).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    linears = list(find_structure(model).linears)
    weights = [linear.module.get_parameter("weight") for linear in linears]
    products = [w.detach() * g for w, g in zip(weights, torch.autograd.grad(loss, weights), strict=True)]
    return {
        linear.name: product.t() if isinstance(linear.module, Conv1D) else product
        for linear, product in zip(linears, products, strict=True)
    }


def assert_salience(found: Salience, products: Tensor) -> None:
    exact = products.double()
    expected = Salience(exact.abs().sum(1), exact.abs().sum(0), exact.sum(1), exact.sum(0))
    for name in SUMS:
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == torch.float64
        # Sums of signed terms cancel: what float32 rounds is the size of the terms.
        scale = float(getattr(expected, name.replace("vector", "element")).max())
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_same_as_autograd_through_the_whole_model(
    family_model: Any, make_windows: Make, batch_size: int
) -> None:
    family_model.double()  # in float32 the gradients of queries and keys are mostly rounding, by either way
    windows = make_windows(3)  # leaves a smaller last batch for 2
    expected = through_the_whole_model(family_model, windows.ids)
    structure = find_structure(family_model)
    found = measure_salience(family_model, structure, windows, batch_size=batch_size)
    assert list(found) == [linear.name for linear in structure.linears]
    for linear in structure.linears:
        assert (len(found[linear.name].out_vector), len(found[linear.name].in_vector)) == linear.shape
        assert_salience(found[linear.name], expected[linear.name])


def test_gemma2_bends_its_logits(make_model: Callable[[str], Any], make_windows: Make) -> None:
    model, windows = make_model("gemma2"), make_windows(2)
    structure, name = find_structure(model), "model.layers.1.mlp.up_proj"
    bent = measure_salience(model, structure, windows)[name]
    model.config.final_logit_softcapping = 0.05  # bends even the small logits of a random model
    sharply = measure_salience(model, structure, windows)[name]
    assert not torch.allclose(bent.out_vector, sharply.out_vector, rtol=0.1)
    assert_salience(sharply, through_the_whole_model(model, windows.ids)[name])


def test_the_first_order_change_of_the_loss(make_model: Callable[[str], Any], make_windows: Make) -> None:
    # No autograd here: an output row that shrinks by a small share changes the loss by minus that of its sum.
    model, windows = make_model("unknown").double(), make_windows(2)  # has no float32 inside, as Llama does
    linear = model.stages[1].back
    found = measure_salience(model, find_structure(model), windows)["stages.1.back"]

    def loss() -> float:
        with torch.no_grad():
            logits = model(input_ids=windows.ids).logits[:, :-1]
        return float(functional.cross_entropy(logits.flatten(0, 1), windows.ids[:, 1:].flatten()))

    before, step = loss(), 1e-3
    for row in (0, 5, 31):
        with torch.no_grad():
            linear.weight[row] *= 1 - step
        change = loss() - before
        with torch.no_grad():
            linear.weight[row] /= 1 - step
        assert change == pytest.approx(-step * float(found.out_vector[row]), rel=0.01)


def test_one_gradient_at_a_time_in_one_block_at_a_time(
    tiny_llama: LlamaForCausalLM, make_windows: Make
) -> None:
    structure = find_structure(tiny_llama)
    order: list[int] = []
    held: list[int] = []
    asking: list[set[str]] = []

    def on_gradient(block: int) -> Callable[[Tensor], None]:
        def note(_: Tensor) -> None:
            order.append(block)
            held.append(sum(parameter.grad is not None for parameter in tiny_llama.parameters()))

        return note

    def on_forward(_module: nn.Module, _arguments: Any) -> None:
        if torch.is_grad_enabled():
            asking.append({name for name, p in tiny_llama.named_parameters() if p.requires_grad})

    for index, block in enumerate(structure.blocks):
        block.module.self_attn.register_forward_pre_hook(on_forward)
        for linear in block.linears:
            linear.module.weight.register_post_accumulate_grad_hook(on_gradient(index))
    measure_salience(tiny_llama, structure, make_windows(2))
    assert order == [block for block in (2, 1, 0) for _ in range(7 * 2)]  # 7 linears, 2 batches
    assert set(held) == {1}
    assert asking == [
        {f"{linear.name}.weight" for linear in structure.blocks[block].linears}
        for block in (2, 1, 0)
        for _ in range(2)
    ]


def test_blocks_run_once_forward_and_once_back(
    family_model: Any, make_windows: Make, forwards_counted: Callable[..., Any]
) -> None:
    with forwards_counted(family_model) as counts:
        measure_salience(family_model, find_structure(family_model), make_windows(5), batch_size=2)
    probes = [lengths.count(1) for lengths in counts]
    assert probes == [2, 0, 0]  # one token tells what a block returns: for the arguments, and for the tail
    assert [[length for length in lengths if length > 1] for lengths in counts] == [[24] * 6] * 3


def test_no_trace_is_left(family_model: Any, make_windows: Make) -> None:
    parameters = dict(family_model.named_parameters())
    names = list(parameters)
    parameters[names[0]].requires_grad_(False)
    parameters[names[1]].grad = torch.full_like(parameters[names[1]], 7.0)
    family_model.train()
    before = {name: tensor.clone() for name, tensor in family_model.state_dict().items()}
    structure, windows = find_structure(family_model), make_windows(2)
    first = measure_salience(family_model, structure, windows)
    again = measure_salience(family_model, structure, windows)
    for name, salience in first.items():
        assert all(torch.equal(getattr(salience, part), getattr(again[name], part)) for part in SUMS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in family_model.state_dict().items())
    assert [name for name in names if not parameters[name].requires_grad] == names[:1]
    assert [name for name in names if parameters[name].grad is not None] == names[1:2]
    assert bool((parameters[names[1]].grad == 7.0).all())
    assert all(module.training for module in family_model.modules())
    assert not any("forward" in module.__dict__ for module in family_model.modules())
    assert torch.is_grad_enabled()


def test_no_trace_is_left_by_an_error(tiny_llama: LlamaForCausalLM, make_windows: Make) -> None:
    tiny_llama.train()
    tiny_llama.model.layers[1].mlp.down_proj.weight.data[3, 4] = float("nan")
    with pytest.raises(RequestError):
        measure_salience(tiny_llama, find_structure(tiny_llama), make_windows(1))
    assert all(p.requires_grad and p.grad is None for p in tiny_llama.parameters())
    assert all(module.training for module in tiny_llama.modules())


def test_a_weight_that_blocks_share_counts_all_its_uses(
    make_model: Callable[[str], Any], make_windows: Make
) -> None:
    model, windows = make_model("llama"), make_windows(3)
    first, second, third = model.model.layers
    third.mlp.up_proj.weight = first.mlp.up_proj.weight
    third.self_attn.q_proj.weight = second.self_attn.q_proj.weight
    expected = through_the_whole_model(model, windows.ids)
    found = measure_salience(model, find_structure(model), windows, batch_size=2)
    assert found.keys() == expected.keys()
    assert len(found) == 19
    for name, salience in found.items():
        assert_salience(salience, expected[name])


def test_a_block_that_comes_twice(make_model: Callable[[str], Any], make_windows: Make) -> None:
    model, windows = make_model("unknown"), make_windows(2)
    model.stages[2] = model.stages[0]
    expected = through_the_whole_model(model, windows.ids)
    found = measure_salience(model, find_structure(model), windows)
    assert found.keys() == expected.keys()
    for name, salience in found.items():
        assert_salience(salience, expected[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_digits_but_not_the_gradient(
    make_model: Callable[[str], Any], make_windows: Make, dtype: torch.dtype
) -> None:
    windows = make_windows(8, seq_len=100)  # a mean over 792 predictions: its gradients underflow in float16
    model = make_model("llama")
    exact = measure_salience(model, find_structure(model), windows)
    half = measure_salience(model.to(dtype), find_structure(model), windows)
    for name, salience in exact.items():
        found, expected = half[name].out_element, salience.out_element
        assert float((found - expected).norm() / expected.norm()) < 0.05, name


def test_more_batches_of_bfloat16_do_not_swallow_each_other(
    make_model: Callable[[str], Any], make_windows: Make
) -> None:
    model = make_model("llama").to(torch.bfloat16)
    once, structure = make_windows(1), find_structure(model)
    record = once.record.model_copy(update={"sequences": 600})
    repeated = TokenWindows(once.ids.repeat(600, 1), record)
    single = measure_salience(model, structure, once)
    many = measure_salience(model, structure, repeated)
    for name, salience in single.items():  # a sum kept in bfloat16 stands still after 256 equal terms
        torch.testing.assert_close(many[name].out_element, salience.out_element, rtol=1e-4, atol=0)


def test_what_holds_no_numbers_is_named(make_model: Callable[[str], Any], make_windows: Make) -> None:
    def message(model: Any) -> str:
        with pytest.raises(RequestError) as caught:
            measure_salience(model, find_structure(model), make_windows(1))
        return str(caught.value)

    model = make_model("llama")
    model.model.layers[1].self_attn.v_proj.weight.data[3, 4] = float("inf")
    assert message(model) == (
        "the weights of model.layers.1.self_attn.v_proj hold NaN or Inf: check the checkpoint"
    )
    model = make_model("llama")
    model.model.layers[1].post_attention_layernorm.weight.data[3] = float("nan")
    assert "the outputs of model.layers.1 hold NaN or Inf" in message(model)
    model = make_model("llama")
    model.lm_head.weight.data[7] = float("nan")
    assert "the gradient of model.layers.2.self_attn.q_proj holds NaN or Inf" in message(model)


def test_a_linear_that_no_token_reached_is_named(
    make_model: Callable[[str], Any], make_windows: Make
) -> None:
    model = make_model("unknown")
    model.stages[1].spare = nn.Linear(32, 32)
    with pytest.raises(RequestError, match=r"no token reached stages\.1\.spare"):
        measure_salience(model, find_structure(model), make_windows(1))


def test_progress_is_told_of_every_block(tiny_llama: LlamaForCausalLM, make_windows: Make) -> None:
    told: list[str] = []

    class Watching:
        def track(self, items: Any, total: int, what: str) -> Any:
            for item in items:
                told.append(f"{what} of {total}")
                yield item

    measure_salience(tiny_llama, find_structure(tiny_llama), make_windows(1), progress=Watching())
    assert told == ["running blocks of 3"] * 3 + ["taking gradients of 3"] * 3
