from types import SimpleNamespace
from typing import Any

import pytest
from transformers import BloomConfig, Gemma3Config, Gemma3TextConfig, GPT2Config, LlamaConfig, OPTConfig

from owl_compress.errors import RequestError
from owl_compress.models.limits import resolve_seq_len


@pytest.mark.parametrize(
    ("config", "maximum"),
    [
        (LlamaConfig(max_position_embeddings=512), 512),
        (LlamaConfig(max_position_embeddings=8192), 8192),
        (GPT2Config(n_positions=1024), 1024),
        (OPTConfig(max_position_embeddings=300), 300),
        (Gemma3Config(text_config=Gemma3TextConfig(max_position_embeddings=700)), 700),
        (SimpleNamespace(max_seq_len=100), 100),
    ],
    ids=["llama", "long-llama", "gpt2", "opt", "gemma3", "mpt-like"],
)
def test_the_sequence_length_is_bounded_by_the_model(config: Any, maximum: int) -> None:
    assert resolve_seq_len(None, config) == min(2048, maximum)
    assert resolve_seq_len(maximum, config) == maximum
    with pytest.raises(RequestError, match=f"{maximum + 1} is over the model's maximum of {maximum}"):
        resolve_seq_len(maximum + 1, config)
    with pytest.raises(RequestError, match="1 is below 2"):
        resolve_seq_len(1, config)


def test_a_model_without_a_maximum_takes_any_length() -> None:
    assert resolve_seq_len(None, BloomConfig()) == 2048
    assert resolve_seq_len(5000, BloomConfig()) == 5000
