"""Narrowed models for other software: what a reader of the format rebuilds has the same logits."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from owl_compress.checkpoints.decilm import check_decilm, inner_width
from owl_compress.checkpoints.loading import load_model
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.checkpoints.stock import to_stock_
from owl_compress.checkpoints.stored_forms import form_named
from owl_compress.errors import RequestError
from owl_compress.forms.narrowing import KeptUnits, has_narrowed_blocks, keep_units_
from owl_compress.models.anatomy import find_anatomy
from owl_compress.models.structure import find_structure

IDS = torch.arange(3, 60)[None]


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(IDS).logits
    return logits


def check(model: Any, **options: bool) -> None:
    check_decilm(model, find_structure(model), **options)


def keep_channels_(model: Any, *widths: int) -> Any:
    """Leave each block the last channels of its feed-forward, as many as its width says."""
    for site, width in zip(find_structure(model).blocks, widths, strict=True):
        anatomy = find_anatomy(site)
        assert anatomy.mlp is not None
        keep_units_(
            site, anatomy, KeptUnits(torch.arange(anatomy.mlp.n_channels - width, anatomy.mlp.n_channels))
        )
    return model


def keep_heads_(model: Any, n_kv_heads: int, n_queries: int) -> Any:
    """Leave every block the first key-value heads, and of each its first query heads."""
    for site in find_structure(model).blocks:
        anatomy = find_anatomy(site)
        attention = anatomy.attention
        assert attention is not None
        heads = torch.arange(attention.n_heads).view(attention.n_kv_heads, -1)[:n_kv_heads, :n_queries]
        kept = KeptUnits(heads=heads.flatten(), kv_heads=torch.arange(n_kv_heads))
        keep_units_(site, anatomy, kept)
    return model


@pytest.fixture
def wide(tokenizer: PreTrainedTokenizerFast) -> Callable[..., Any]:
    """A function that builds a random model whose feed-forwards have 768 channels."""

    def build(name: str = "Llama", **options: Any) -> Any:
        sizes = {
            "vocab_size": len(tokenizer), "hidden_size": 48, "intermediate_size": 768, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        }  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = getattr(transformers, f"{name}Config")(**sizes | options)
            model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(1)
                )
        return model.eval()

    return build


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
        ("Llama", {"tie_word_embeddings": True}),
        ("Llama", {"hidden_size": 44, "num_attention_heads": 2, "num_key_value_heads": 2}),
        ("Mistral", {"sliding_window": None}),
        ("Mistral", {"sliding_window": 128, "rms_norm_eps": 0.1}),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("copied_modules")
def test_blocks_built_from_a_decilm_export_give_the_same_logits(
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


def test_a_decilm_config_is_what_its_readers_look_for(
    wide: Callable[..., Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
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


def test_decilm_refuses_lost_heads_and_sublayers_and_packed_codes(wide: Callable[..., Any]) -> None:
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
    cached = plain.generate(IDS[:, :6], **options)
    assert torch.equal(cached, plain.generate(IDS[:, :6], use_cache=False, **options))
    assert torch.equal(cached, model.generate(IDS[:, :6], **options))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", lambda model: keep_channels_(model, 40, 48, 40), r"layers\.1 has .*intermediate_size 48"),
        ("bloom", lambda model: keep_channels_(model, 40, 40, 40), "has no key for .*dense_h_to_4h"),
        ("bloom", lambda model: keep_heads_(model, 2, 1), "uniform width: transformers takes no|has no key"),
        ("opt", lambda model: keep_heads_(model, 2, 1), "uniform width: .*--parts mlp"),
        ("gpt2", lambda model: keep_heads_(model, 2, 1), "uniform width: .*--parts mlp"),
        ("gpt2", lambda model: keep_heads_(model, 3, 1), "uniform width: transformers takes no .*n_head 3"),
        ("gpt_neox", lambda model: keep_heads_(model, 2, 1), "uniform width: .*--parts mlp"),
        ("falcon_alibi", lambda model: keep_heads_(model, 2, 1), "uniform width: .*--parts mlp"),
    ],
)  # fmt: skip
def test_widths_that_a_stock_model_cannot_have_are_refused(
    make_model: Callable[[str], Any], name: str, change: Callable[[Any], Any], message: str
) -> None:
    model = change(make_model(name))
    before, expected = model.config.to_dict(), logits_of(model)
    with pytest.raises(RequestError, match=message):
        to_stock_(model)
    assert model.config.to_dict() == before
    assert has_narrowed_blocks(model)
    assert torch.equal(logits_of(model), expected)


def test_head_counts_that_do_not_divide_the_hidden_size_are_refused(wide: Callable[..., Any]) -> None:
    model = keep_heads_(wide(hidden_size=40, num_key_value_heads=4), 3, 1)
    with pytest.raises(RequestError, match=r"takes no num_attention_heads 3.*not a multiple"):
        to_stock_(model)


def test_empty_sublayers_are_refused(wide: Callable[..., Any]) -> None:
    for model in (keep_heads_(wide(), 0, 0), keep_channels_(wide(), 0, 0, 0)):
        with pytest.raises(RequestError, match="uniform width: a sublayer is gone from every block"):
            to_stock_(model)


def test_a_loaded_checkpoint_becomes_stock_too(
    make_model: Callable[[str], Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
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
