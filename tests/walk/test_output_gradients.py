"""Gradients at the outputs of blocks, held against one pass back through the whole model."""

from collections.abc import Callable
from typing import Any

import torch

from owl_compress.data.windows import TokenWindows
from owl_compress.models.structure import find_structure
from owl_compress.walk.output_gradients import output_gradients

HOST = torch.device("cpu")


def test_gradients_are_those_of_drawn_tokens_through_the_whole_model(
    make_model: Callable[[str], Any], make_windows: Callable[..., TokenWindows]
) -> None:
    model, windows = make_model("llama"), make_windows(2, 12)
    structure = find_structure(model)
    found = output_gradients(model, structure, windows, device=HOST, seed=7)
    generator = torch.Generator().manual_seed(7)
    for batch, ids in enumerate(windows.batches(1)):
        caught: list[torch.Tensor] = []

        def keep(_module: Any, _inputs: Any, outputs: Any, caught: list[torch.Tensor] = caught) -> None:
            hidden = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
            hidden.retain_grad()
            caught.append(hidden)

        handles = [site.module.register_forward_hook(keep) for site in structure.blocks]
        logs = torch.log_softmax(model(input_ids=ids).logits.float(), dim=-1).flatten(0, 1)
        for handle in handles:
            handle.remove()
        drawn = torch.multinomial(logs.detach().exp(), 1, generator=generator)
        logs.gather(1, drawn).sum().backward()
        for block, hidden in enumerate(caught):
            torch.testing.assert_close(found[block][batch], hidden.grad, rtol=1e-3, atol=1e-6)
        model.zero_grad()


def test_the_model_asks_for_gradients_as_before(
    make_model: Callable[[str], Any], make_windows: Callable[..., TokenWindows]
) -> None:
    model = make_model("llama")
    before = [parameter.requires_grad for parameter in model.parameters()]
    output_gradients(model, find_structure(model), make_windows(1, 8), device=HOST)
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert all(parameter.grad is None for parameter in model.parameters())
