"""Narrowed models for other software: what a reader of the format rebuilds has the same logits."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from owl_compress.checkpoints.decilm import check_decilm, inner_width
from owl_compress.checkpoints.loading import load_model
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.checkpoints.stored_forms import form_named
from owl_compress.errors import RequestError
from owl_compress.models.structure import find_structure

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip


def check(model: Any, **options: bool) -> None:
    check_decilm(model, find_structure(model), **options)


def as_a_server_builds_it(folder: Path) -> LlamaForCausalLM:
    """The model by the rules of vLLM's nemotron_nas.py, out of transformers' Llama blocks."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = LlamaForCausalLM(config)
    for index, block in enumerate(config.block_configs):
        assert not block.attention.no_op
        assert not block.ffn.no_op
        of_block = copy.copy(config)
        of_block.num_key_value_heads = config.num_attention_heads // block.attention.n_heads_in_group
        width = int(2 * block.ffn.ffn_mult * config.hidden_size / 3)
        of_block.intermediate_size = width if width % 256 == 0 else width + 256 - width % 256
        model.model.layers[index] = LlamaDecoderLayer(of_block, index)
    found = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert not found.unexpected_keys
    assert found.missing_keys == (["lm_head.weight"] if config.tie_word_embeddings else [])
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Llama", {}),
        ("Llama", {"attention_bias": True, "mlp_bias": True}),
        ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}}),
        ("Llama", {"rope_parameters": LLAMA3}),
        ("Llama", {"tie_word_embeddings": True}),
        ("Llama", {"hidden_size": 44, "num_attention_heads": 2, "num_key_value_heads": 2}),
        ("Mistral", {"sliding_window": None}),
        ("Mistral", {"sliding_window": 128, "rms_norm_eps": 0.1}),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("copied_modules")
def test_blocks_built_from_a_decilm_export_give_the_same_logits(
    keep_channels_: Callable[..., Any],
    logits_of: Callable[[Any], Tensor],
    wide: Callable[..., Any],
    tokenizer: PreTrainedTokenizerFast,
    name: str,
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    model = keep_channels_(wide(name, **options), 256, 768, 512)
    before = model.config.to_dict()
    (tmp_path / "OUT").mkdir()
    save_checkpoint(model, tokenizer, tmp_path / "OUT", form_named("decilm"))
    assert model.config.to_dict() == before
    rebuilt = as_a_server_builds_it(tmp_path / "OUT")
    assert [layer.mlp.up_proj.out_features for layer in rebuilt.model.layers] == [256, 768, 512]
    assert torch.equal(logits_of(rebuilt), logits_of(model))
    rebuilt.config.save_pretrained(tmp_path / "again")  # its blocks are plain JSON still
    blocks = [
        json.loads((tmp_path / name / "config.json").read_text())["block_configs"]
        for name in ("OUT", "again")
    ]
    assert blocks[0] == blocks[1]


@pytest.mark.parametrize(
    ("rope", "older", "notes"),
    [
        ({"rope_type": "default", "rope_theta": 500.0}, {"rope_theta": 500.0}, 0),
        (
            LLAMA3,
            {
                "rope_theta": 500.0,
                "rope_scaling": {key: value for key, value in LLAMA3.items() if key != "rope_theta"},
                "original_max_position_embeddings": 32,
            },
            0,
        ),
        (
            {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0},
            {"rope_theta": 500.0, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            1,
        ),
    ],
)
def test_the_rotary_embedding_stands_in_the_words_of_llama_cpp_too(
    keep_channels_: Callable[..., Any],
    wide: Callable[..., Any],
    tokenizer: PreTrainedTokenizerFast,
    rope: dict[str, Any],
    older: dict[str, Any],
    notes: int,
    tmp_path: Path,
) -> None:
    model = keep_channels_(wide(rope_parameters=rope), 256, 768, 512)
    said = save_checkpoint(model, tokenizer, tmp_path, form_named("decilm"))
    config = json.loads((tmp_path / "config.json").read_text())
    names = ("rope_theta", "rope_scaling", "original_max_position_embeddings")
    assert {name: config[name] for name in names if name in config} == older
    assert config["rope_parameters"].items() >= rope.items()
    assert [f"kind {rope['rope_type']!r} out" in note for note in said] == [True] * notes


def test_a_decilm_config_is_what_its_readers_look_for(
    keep_channels_: Callable[..., Any],
    wide: Callable[..., Any],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    save_checkpoint(keep_channels_(wide(), 256, 768, 512), tokenizer, tmp_path, form_named("decilm"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["DeciLMForCausalLM"]
    assert config["model_type"] == "nemotron-nas"
    assert config["block_configs"][0] == {
        "attention": {"n_heads_in_group": 2, "no_op": False, "replace_with_linear": False},
        "ffn": {"ffn_mult": 8.0, "no_op": False, "replace_with_linear": False},
    }
    assert all(isinstance(block["ffn"]["ffn_mult"], float) for block in config["block_configs"])
    assert not any("owl" in key or "per_layer" in key for key in config)
    assert {file.name for file in tmp_path.glob("*.py")} == {"configuration_decilm.py"}
    assert "owl_compress" not in (tmp_path / "configuration_decilm.py").read_text()
    with pytest.raises(RequestError, match="is a DeciLM checkpoint, for vLLM"):
        load_model(str(tmp_path))


def test_every_multiple_of_256_survives_the_formula() -> None:
    for hidden_size in (576, 960, 2048, 3072, 4096, 5120, 6144, 8192, 16384):
        for width in range(256, 65537, 256):
            ffn_mult = round(3 * width / (2 * hidden_size), 6)
            intermediate = int(2 * ffn_mult * hidden_size / 3)  # as vLLM, llama.cpp, mlx-lm have it
            if intermediate % 256:
                intermediate = intermediate + 256 - intermediate % 256
            assert inner_width(ffn_mult, hidden_size) == intermediate == width


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Gemma2", {"head_dim": 12}, "gemma2 models are none of llama and mistral.*leave --export away"),
        ("Qwen2", {}, "qwen2 models are none of"),
        ("Mistral", {"sliding_window": 64}, "no sliding window, the model one of 64"),
        (
            "Llama",
            {"head_dim": 8},
            "its head size is hidden size / heads, the model's is 8 with 4 heads in 48",
        ),
        ("Llama", {"intermediate_size": 700}, "multiples of 256 channels.*layers.0 has 700.*--round-to 256"),
    ],
)
def test_what_decilm_cannot_say_is_refused(
    wide: Callable[..., Any],
    tokenizer: PreTrainedTokenizerFast,
    name: str,
    options: dict[str, Any],
    message: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(RequestError, match=message):
        save_checkpoint(wide(name, **options), tokenizer, tmp_path, form_named("decilm"))
    assert not any(tmp_path.iterdir())


def test_decilm_refuses_lost_heads_and_sublayers_and_packed_codes(
    keep_channels_: Callable[..., Any], keep_heads_: Callable[..., Any], wide: Callable[..., Any]
) -> None:
    with pytest.raises(RequestError, match=r"keeps all 4 query heads.*layers\.0 has 2.*--parts mlp"):
        check(keep_heads_(wide(), 2, 1))
    with pytest.raises(RequestError, match=r"layers\.1 has no feed-forward left.*--allow-empty"):
        check(keep_channels_(wide(), 256, 0, 256))
    with pytest.raises(RequestError, match="use --format dense"):
        check(wide(), is_packed=True)


def test_before_a_compression_decilm_does_not_look_at_widths(wide: Callable[..., Any]) -> None:
    check(wide(intermediate_size=700), widths_are_final=False)
    with pytest.raises(RequestError, match="gemma2"):
        check(wide("Gemma2", head_dim=12), widths_are_final=False)
