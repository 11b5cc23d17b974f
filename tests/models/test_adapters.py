"""Adapters in a live model are refused: what is compressed must be what is saved."""

import pytest
from torch import nn
from transformers import LlamaForCausalLM

from owl_compress.errors import RequestError
from owl_compress.models.structure import find_structure


class Wrapped(nn.Module):
    """A linear with a pair of low rank beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base.out_features, bias=False)


def test_a_wrapped_linear_is_named_with_the_remedy(tiny_llama: LlamaForCausalLM) -> None:
    attention = tiny_llama.model.layers[1].self_attn
    attention.q_proj = Wrapped(attention.q_proj)
    message = (
        r"adapter woven in \(model\.layers\.1\.self_attn\.q_proj is a Wrapped\): merge .*merge_and_unload"
    )
    with pytest.raises(RequestError, match=message):
        find_structure(tiny_llama)


def test_a_model_of_the_package_is_refused_whatever_its_method(tiny_llama: LlamaForCausalLM) -> None:
    kind = type("PromptModel", (nn.Module,), {"__module__": "peft.peft_model"})
    wrapper = kind()
    wrapper.model = tiny_llama
    with pytest.raises(RequestError, match=r"adapter woven in \(it is a PromptModel\)"):
        find_structure(wrapper)
