"""Narrowed models of one width become ordinary ones, or stay as they are and the reason is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from owl_compress.checkpoints.loading import load_model
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.checkpoints.stock import to_stock_
from owl_compress.errors import RequestError
from owl_compress.forms.narrowing import has_narrowed_blocks

PREFIX = torch.arange(3, 9)[None]


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("llama", (1, 2)), ("llama", (2, 1)), ("mistral", (2, 1)), ("qwen2", (1, 2)), ("qwen3", (1, 1)),
        ("gemma2", (1, 2)), ("gemma3", (1, 2)), ("gemma3_with_vision", (1, 2)), ("phi3", (1, 2)),
        ("opt", None), ("gpt2", None), ("gpt_neox", None), ("falcon", None), ("falcon_grouped", None),
        ("falcon_alibi", None),
    ],
)  # fmt: skip
def test_one_width_for_all_blocks_makes_a_stock_checkpoint(
    keep_channels_: Callable[..., Any],
    keep_heads_: Callable[..., Any],
    logits_of: Callable[[Any], Tensor],
    make_model: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
    name: str,
    heads: tuple[int, int] | None,
    tmp_path: Path,
) -> None:
    model = keep_channels_(make_model(name), 40, 40, 40)
    if heads:
        keep_heads_(model, *heads)
    expected = logits_of(model)
    to_stock_(model)
    assert not has_narrowed_blocks(model)
    assert torch.equal(logits_of(model), expected)
    save_checkpoint(model, tokenizer, tmp_path)
    assert not list(tmp_path.glob("*.py"))
    text = (tmp_path / "config.json").read_text()
    assert not any(key in text for key in ("owl_compress", "auto_map", "per_layer", "Narrow"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(plain) is type(model)
    assert torch.equal(logits_of(plain), expected)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    cached = plain.generate(PREFIX, **options)
    assert torch.equal(cached, plain.generate(PREFIX, use_cache=False, **options))
    assert torch.equal(cached, model.generate(PREFIX, **options))


@pytest.mark.parametrize(
    ("name", "part", "widths", "message"),
    [
        ("llama", "channels", (40, 48, 40), r"layers\.1 has .*intermediate_size 48"),
        ("bloom", "channels", (40, 40, 40), "has no key for .*dense_h_to_4h"),
        ("bloom", "heads", (2, 1), "uniform width: transformers takes no|has no key"),
        ("opt", "heads", (2, 1), "uniform width: .*--parts mlp"),
        ("gpt2", "heads", (2, 1), "uniform width: .*--parts mlp"),
        ("gpt2", "heads", (3, 1), "uniform width: transformers takes no .*n_head 3"),
        ("gpt_neox", "heads", (2, 1), "uniform width: .*--parts mlp"),
        ("falcon_alibi", "heads", (2, 1), "uniform width: .*--parts mlp"),
    ],
)  # fmt: skip
def test_widths_that_a_stock_model_cannot_have_are_refused(
    logits_of: Callable[[Any], Tensor],
    keep_channels_: Callable[..., Any],
    keep_heads_: Callable[..., Any],
    make_model: Callable[[str], Any],
    name: str,
    part: str,
    widths: tuple[int, ...],
    message: str,
) -> None:
    cut_ = {"channels": keep_channels_, "heads": keep_heads_}[part]
    model = cut_(make_model(name), *widths)
    before, expected = model.config.to_dict(), logits_of(model)
    with pytest.raises(RequestError, match=message):
        to_stock_(model)
    assert model.config.to_dict() == before
    assert has_narrowed_blocks(model)
    assert torch.equal(logits_of(model), expected)


def test_head_counts_that_do_not_divide_the_hidden_size_are_refused(
    keep_heads_: Callable[..., Any], wide: Callable[..., Any]
) -> None:
    model = keep_heads_(wide(hidden_size=40, num_key_value_heads=4), 3, 1)
    with pytest.raises(RequestError, match=r"takes no num_attention_heads 3.*not a multiple"):
        to_stock_(model)


def test_empty_sublayers_are_refused(
    keep_channels_: Callable[..., Any], keep_heads_: Callable[..., Any], wide: Callable[..., Any]
) -> None:
    for model in (keep_heads_(wide(), 0, 0), keep_channels_(wide(), 0, 0, 0)):
        with pytest.raises(RequestError, match="uniform width: a sublayer is gone from every block"):
            to_stock_(model)


def test_a_loaded_checkpoint_becomes_stock_too(
    keep_channels_: Callable[..., Any],
    logits_of: Callable[[Any], Tensor],
    make_model: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    (tmp_path / "narrow").mkdir()
    (tmp_path / "stock").mkdir()
    save_checkpoint(keep_channels_(make_model("phi3"), 40, 40, 40), tokenizer, tmp_path / "narrow")
    model = load_model(str(tmp_path / "narrow")).model
    expected = logits_of(model)
    to_stock_(model)
    save_checkpoint(model, tokenizer, tmp_path / "stock")
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "stock")), expected)


def test_an_ordinary_model_stays_as_it_is(make_model: Callable[[str], Any]) -> None:
    model = make_model("llama")
    before = model.config.to_dict()
    to_stock_(model)
    assert model.config.to_dict() == before
