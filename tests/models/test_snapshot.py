"""A model that was compressed in place is put back bit by bit, and is compressed again to the same bits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from owl_compress.allocators import Target, allocate
from owl_compress.backends import BACKENDS
from owl_compress.compression.contract import ModelFinisher
from owl_compress.compression.driver import compress_with_
from owl_compress.importance.estimator import outline
from owl_compress.models.snapshot import ModelSnapshot
from owl_compress.models.structure import find_structure


def tensors(model: nn.Module) -> dict[str, Tensor]:
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in named}


def is_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def settings(model: nn.Module) -> dict[str, dict[str, Any]]:
    plain = (int, float, str, bool, type(None))
    return {
        name: {key: value for key, value in vars(module).items() if isinstance(value, plain)}
        for name, module in model.named_modules()
    }


WAYS: dict[str, tuple[Target, dict[str, Any]]] = {
    "wanda": (Target.from_sparsity(0.6), {}),
    "sparsegpt": (Target.from_nm("2:4"), {}),
    "gptq": (Target.from_bits(3, (2, 3, 4)), {"group_size": 8}),
    "structured": (Target.from_prune_ratio(0.5), {"repair": True, "round_to": 8}),
}


@pytest.mark.parametrize(
    ("way", "family"),
    [
        ("wanda", "llama"), ("sparsegpt", "gpt2"), ("gptq", "opt"), ("structured", "llama"),
        ("structured", "gpt2"), ("structured", "gemma3"), ("structured", "falcon"),
    ],
)  # fmt: skip
def test_a_compressed_model_is_put_back_bit_by_bit(
    way: str, family: str, make_model: Callable[[str], Any], make_windows: Callable[..., Any]
) -> None:
    model, windows = make_model(family), make_windows(sequences=2, seq_len=16)
    target, options = WAYS[way]
    backend = BACKENDS.create(way, options)
    structure = find_structure(model)
    plan = allocate(outline(model, structure=structure), "uniform", target)
    dense, plain, config = tensors(model), settings(model), model.config.to_dict()
    with torch.no_grad():
        logits = model(input_ids=windows.ids).logits
    snapshot = ModelSnapshot.of(model)
    outcomes = []
    for _ in range(2):
        compress_with_(model, plan, backend, windows, structure=structure)
        outcomes.append(tensors(model))
        assert not is_same(outcomes[-1], dense)
        snapshot.restore_(model)
        assert is_same(tensors(model), dense)
        assert settings(model) == plain
        assert model.config.to_dict() == config
    assert is_same(*outcomes)
    with torch.no_grad():
        assert torch.equal(model(input_ids=windows.ids).logits, logits)
    assert [site.module for site in find_structure(model).linears] == [s.module for s in structure.linears]


def test_what_a_backend_makes_of_the_whole_model_is_undone(
    make_model: Callable[[str], Any], make_windows: Callable[..., Any]
) -> None:
    model, windows = make_model("llama"), make_windows(sequences=2, seq_len=16)
    backend = BACKENDS.create("structured", {"uniform_width": True, "round_to": 8})
    plan = allocate(outline(model), "uniform", Target.from_prune_ratio(0.5))
    dense, config = tensors(model), model.config.to_dict()
    snapshot = ModelSnapshot.of(model)
    compress_with_(model, plan, backend, windows)
    assert isinstance(backend, ModelFinisher)
    backend.finish_(model)
    assert model.config.to_dict() != config
    snapshot.restore_(model)
    assert is_same(tensors(model), dense)
    assert model.config.to_dict() == config


def test_tensors_that_are_shared_stay_shared(make_model: Callable[[str], Any]) -> None:
    model = make_model("llama")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    snapshot = ModelSnapshot.of(model)
    model.model.layers[1].mlp.up_proj.weight = nn.Parameter(torch.zeros(2, 2))
    model.model.layers[0].mlp.up_proj.weight.data = torch.zeros(3, 3)
    model.model.layers[0].note = "left behind"
    snapshot.restore_(model)
    assert model.model.layers[1].mlp.up_proj.weight is model.model.layers[0].mlp.up_proj.weight
    assert model.model.layers[1].mlp.up_proj.weight.shape == (64, 32)
    assert not hasattr(model.model.layers[0], "note")
