"""Checkpoints that are no causal language model, or none with anything in it: one line each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from owl_compress.allocators import Target, allocate
from owl_compress.backends.magnitude import Magnitude
from owl_compress.compression.driver import compress_with_
from owl_compress.errors import RequestError
from owl_compress.importance.estimator import outline
from owl_compress.models.structure import check_compressible, find_structure
from owl_compress.pipeline.folder import earlier_steps
from owl_compress.pipeline.stages import (
    compress_,
    load,
)

ENCODER = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}  # fmt: skip
BART = {
    "vocab_size": 32, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "auto", "sizes", "words"),
    [
        ("bert", "AutoModel", ENCODER, "(bert) is an encoder, which sees what follows"),
        ("bert", "AutoModelForMaskedLM", ENCODER, "(BertForMaskedLM) is not a causal language model"),
        ("bart", "AutoModel", BART, "(bart) is an encoder with a decoder"),
        ("bart", "AutoModelForSeq2SeqLM", BART, "(BartForConditionalGeneration) is not a causal"),
        ("llama", "AutoModelForSequenceClassification", ENCODER, "(LlamaForSequenceClassification) is not"),
    ],
)
def test_another_kind_of_model_is_said_to_be_one(
    refusal: Callable[..., str], small_tokenizer: PreTrainedTokenizerFast, tmp_path: Path,
    kind: str, auto: str, sizes: dict[str, int], words: str,
) -> None:  # fmt: skip
    getattr(transformers, auto).from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(tmp_path)
    small_tokenizer.save_pretrained(tmp_path)
    assert words in refusal(tmp_path)


def test_a_model_without_blocks_is_said_to_have_none() -> None:
    model = LlamaForCausalLM(AutoConfig.for_model("llama", **ENCODER | {"num_hidden_layers": 0}))
    with pytest.raises(RequestError, match=r"the model has no blocks|no list of blocks"):
        check_compressible(find_structure(model))


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "[]", "7", "{", '{"a": ' + "[" * 100_000, '{"a": ' + "7" * 5000 + "}",
        '{"accuracy": 0.5}', '{"schema": "owl-compress/result/1"}',
        '{"schema": "owl-compress/result/1", "budgets": []}',
        '{"schema": "owl-compress/result/1", "budgets": 7}',
        '{"schema": ["owl-compress/result/1"]}',
    ],
    ids=range(12),
)  # fmt: skip
def test_a_result_of_somebody_else_is_no_matter(checkpoint: Path, text: str) -> None:
    (checkpoint / "result.json").write_text(text)
    assert earlier_steps(load(str(checkpoint))) == ()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_no_number_is_named_when_it_is_loaded(checkpoint: Path, number: float) -> None:
    file, name = checkpoint / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    weights = load_file(file)
    weights[name][3, 4] = number
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(RequestError, match=rf"{name} holds NaN or Inf"):
        load(str(checkpoint))


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj", "model.embed_tokens", "model.norm"])
def test_a_live_model_with_a_weight_that_is_no_number_is_refused_before_anything_is_done(
    make_model: Callable[[str], Any], make_windows: Callable[..., Any], name: str
) -> None:
    model = make_model("llama")
    plan = allocate(outline(model), "uniform", Target.from_sparsity(0.5))
    with torch.no_grad():
        model.get_submodule(name).weight.view(-1)[5] = float("nan")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for run in (
        lambda: compress_with_(model, plan, Magnitude(), None),
        lambda: compress_(model, plan, "wanda", make_windows()),
        lambda: compress_(model, plan, "sparsegpt", make_windows()),
    ):
        with pytest.raises(RequestError, match=rf"{name}\.weight holds NaN or Inf"):
            run()
    after = model.state_dict()
    assert all(torch.equal(before[key].nan_to_num(), after[key].nan_to_num()) for key in before)
