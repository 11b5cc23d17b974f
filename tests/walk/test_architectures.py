"""Every causal architecture of transformers, tiny: what is measured of it is what its own forward pass does.

An architecture that has no table is measured as those that have one, or refused in one line. Both are stated
here: `REFUSED` by reason, `NOT_BUILT` with why no tiny model of it is made. What another version of
transformers does not have is skipped; what it has besides is tested like the others.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from owl_compress.data.windows import TokenWindows
from owl_compress.errors import RequestError
from owl_compress.importance.estimator import measure
from owl_compress.models.structure import BlockSite, find_structure
from owl_compress.walk.blocks import BlockWalk
from owl_compress.walk.input_statistics import SecondMoments

pytestmark = pytest.mark.slow

# Sizes of a tiny model by the keys that configurations have for them.
_KEYS = {
    320: "vocab_size vocab_size_per_layer_input n_words",
    128: "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length",
    64: "intermediate_size ffn_dim n_inner ffn_hidden_size d_ff dff encoder_ffn_dim decoder_ffn_dim d_inner "
    "shared_intermediate_size block_ff_dim dense_intermediate_size intermediate_size_mlp "
    "ffn_intermediate_size shared_transformer_intermediate_size mamba_d_ssm",
    32: "hidden_size d_model n_embd dim word_embed_proj_dim embedding_size attention_hidden_size lru_width "
    "hidden_size_per_layer_input moe_intermediate_size moe_shared_expert_intermediate_size embedding_dim "
    "shared_expert_intermediate_size expert_ffn_hidden_size dim_model emb_dim input_embedding_size "
    "text_hidden_size embed_dim sliding_window attention_window output_embedding_size",
    8: "head_dim d_kv attention_head_size kv_channels rotary_dim linear_key_head_dim linear_value_head_dim "
    "v_head_dim qk_nope_head_dim qk_rope_head_dim kv_lora_rank q_lora_rank mamba_d_state state_size d_head "
    "ssm_state_size laurel_rank global_head_dim swa_head_dim swa_v_head_dim index_head_dim dim_head "
    "index_n_heads mamba_state_dim linear_head_dim",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
    "mamba_n_heads mamba_num_heads linear_num_value_heads num_experts num_local_experts n_routed_experts "
    "swa_num_attention_heads num_linear_attention_heads num_decoder_attention_heads moe_num_experts "
    "num_encoder_attention_heads local_num_heads linear_num_heads",
    2: "num_hidden_layers n_layer n_layers num_layers num_key_value_heads num_kv_heads encoder_layers "
    "decoder_layers num_decoder_layers num_encoder_layers num_experts_per_tok moe_topk top_k "
    "linear_num_key_heads swa_num_key_value_heads moe_k num_experts_per_token",
    1: "n_group topk_group n_groups num_expert_group mamba_n_groups first_k_dense_replace "
    "num_nextn_predict_layers moe_layer_start_index",
}
_SIZES = {key: size for size, keys in _KEYS.items() for key in keys.split()}
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
_LEFT_OUT = {
    "architectures",
    "dtype",
    "model_type",
    "per_layer_config",
    "qk_head_dim",
    "transformers_version",
}
# What single architectures need besides, as they are or in a part of another.
_ALL_HEADS = (
    "axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note_text", "glm4_moe_lite",
    "glm_moe_dsa", "bailing_hybrid", "kimi_linear", "minicpm3", "sarvam_mla", "youtu", "longcat_flash",
)  # fmt: skip
_HEAD_DIM = ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")
_FURTHER: dict[str, dict[str, Any]] = {
    **{kind: {"num_key_value_heads": 4, "num_experts_per_tok": 2} for kind in _ALL_HEADS},
    **{kind: {"head_dim": 8} for kind in _HEAD_DIM},
    "bamba": {"mamba_d_head": 16, "attn_layer_indices": [1]},
    "dory": {
        "num_hidden_layers": 3, "n_input_layers": 1, "n_recurrent_layers": None, "n_output_layers": 1,
        "layer_types": None,
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_head": 16},
    "gemma3n_text": {"num_hidden_layers": 4, "num_kv_shared_layers": 0, "altup_num_inputs": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"mamba_d_head": 16, "layer_types": ["linear_attention", "full_attention"]},
    "hrm_text": {"num_hidden_layers": 16, "num_layers_per_stack": None},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"head_dim": 16, "num_heads": 4},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "local"], "hash_seed": 0},
    "zamba": {
        "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
    },
    "zamba2": {
        "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, "mamba_headdim": 8,
        "hybrid_layer_ids": [1, 3],
        "attention_hidden_size": 64,
    },
}  # fmt: skip
_NO_TEXT = "its forward pass wants more than the ids of tokens"
_DEFAULTS = "transformers does not build it from its own default configuration"
# Of this version the lists say all there is to say; of others they may be too long or too short.
IS_LISTED = transformers.__version__.startswith("5.24.")
NOT_BUILT = {
    "blt": "two decoders and an encoder around patches of bytes",
    "cohere_compass_text": _DEFAULTS,
    "dbrx": _DEFAULTS,
    "dots3_note": "its tower of vision has sizes of its own; dots3_note_text is the same without",
    "gemma4_assistant": _DEFAULTS,
    "gemma4_unified_assistant": _DEFAULTS,
    "musicgen": _NO_TEXT,
    "musicgen_melody": _NO_TEXT,
    "xlstm": "its kernels have sizes of their own",
    "xmod": _NO_TEXT,
}
_NOT_ONE_BY_ONE = "cannot be measured"  # blocks that run twice, in another order, or hand on more than states
_TOWER = "does not call"  # the longest list of blocks is that of a tower for images or sound
_UNUSED = "no token reached"  # adapters of another block, which this one holds and does not call
REFUSED = {
    **dict.fromkeys(("dory", "hrm_text", "hy_v4", "reformer", "xlm", "zaya"), _NOT_ONE_BY_ONE),
    "git": _TOWER,
    "zamba2": _UNUSED,
}


def tiny_config(kind: str) -> Any:
    """The configuration of an architecture with few and small blocks."""
    config_class = CONFIG_MAPPING[kind]
    sizes = _shrunk(config_class().to_dict())
    if "is_decoder" in sizes:
        sizes["is_decoder"] = True
    return config_class(**sizes)


def _shrunk(described: dict[str, Any]) -> dict[str, Any]:
    depths = {described.get(key) for key in _DEPTHS}
    small = {
        key: _few(value) if isinstance(value, list) and len(value) in depths else _small(key, value)
        for key, value in described.items()
        if key not in _LEFT_OUT
    }
    small |= _FURTHER.get(str(described.get("model_type")), {})
    depth = next((small[key] for key in _DEPTHS if key in small), 2)
    return {
        key: (value * depth)[:depth] if isinstance(value, list) and value == _few(value) else value
        for key, value in small.items()
    }


def _few(by_block: list[Any]) -> list[Any]:
    """Two of a list with something for each block, not the same if there are others."""
    others = [other for other in by_block[1:] if other != by_block[0]] or by_block[1:]
    return [*by_block[:1], *others[:1]]


def _small(key: str, value: Any) -> Any:
    if isinstance(value, dict) and key.endswith("_config"):
        return _shrunk(value)
    if key.endswith(("token_id", "token_index")) and value is not None:
        return 1
    if key in _SIZES and isinstance(value, int) and value > 0 and not isinstance(value, bool):
        return min(_SIZES[key], value)
    return value


@pytest.fixture
def windows(make_windows: Callable[..., TokenWindows]) -> TokenWindows:
    return make_windows(sequences=2, seq_len=8)


def build(kind: str, windows: TokenWindows) -> Any:
    """The tiny model with norms and biases that matter, or a test skipped where there is none."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        try:
            model = AutoModelForCausalLM.from_config(tiny_config(kind)).eval().float()
            model(input_ids=windows.ids)
        except ImportError as error:
            pytest.skip(f"needs another package: {str(error).splitlines()[0]}")
        except Exception as error:
            if IS_LISTED:
                raise
            pytest.skip(f"this version builds no tiny model: {type(error).__name__}")
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def plain_forward(
    model: nn.Module, blocks: tuple[BlockSite, ...], windows: TokenWindows
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Sums of the squared inputs of each linear, and outputs of each block, of the model's own forward."""
    squares: dict[str, Tensor] = {}
    outputs: list[list[Tensor]] = [[] for _ in blocks]

    def add(name: str, inputs: Tensor) -> None:
        found = inputs.reshape(-1, inputs.shape[-1]).double().square().sum(dim=0)
        squares[name] = squares.get(name, 0) + found

    with ExitStack() as hooks, torch.no_grad():
        for index, block in enumerate(blocks):
            hooks.callback(
                block.module.register_forward_hook(
                    lambda _module, _inputs, out, index=index: outputs[index].append(
                        out if isinstance(out, Tensor) else out[0]
                    )
                ).remove
            )
            for linear in block.linears:
                hooks.callback(
                    linear.module.register_forward_pre_hook(
                        lambda _module, inputs, name=linear.name: add(name, inputs[0])
                    ).remove
                )
        for ids in windows.batches(1):
            model(input_ids=ids)
    return squares, [torch.cat(block) for block in outputs]


def walked(
    model: nn.Module, windows: TokenWindows, names: set[str]
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """What the walk gathers of the linears in `names`, block by block, and what the block returns."""
    structure = find_structure(model)
    walk = BlockWalk(model, structure, list(windows.batches(1)), device=torch.device("cpu"))
    for visit in walk.visits():
        groups = visit.gather(SecondMoments, names, advance=True)
        squares = {
            linear.name: group.statistic.second_moments for group in groups for linear in group.linears
        }
        yield squares, torch.cat(walk.hidden)


def measured(model: nn.Module, windows: TokenWindows) -> set[str] | str:
    """The linears that are measured, or why the model is refused."""
    try:
        report = measure(model, windows, partial=True)
    except RequestError as refusal:
        return str(refusal)
    return {linear.name for block in report.blocks for linear in block.linears}


@pytest.mark.parametrize("kind", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_every_causal_architecture_is_measured_as_it_runs_or_refused(
    kind: str, windows: TokenWindows
) -> None:
    if kind in NOT_BUILT:
        pytest.skip(NOT_BUILT[kind])
    model = build(kind, windows)
    names = measured(model, windows)
    if isinstance(names, str):
        assert "\n" not in names
        assert kind in REFUSED or not IS_LISTED, names
        assert REFUSED.get(kind, "") in names
        return
    assert kind not in REFUSED or not IS_LISTED, "measured by now: take it off the list"
    squares, outputs = plain_forward(model, find_structure(model).blocks, windows)
    for index, (found, hidden) in enumerate(walked(model, windows, names)):
        for name, second_moments in found.items():
            torch.testing.assert_close(second_moments.double(), squares[name], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(hidden, outputs[index], rtol=1e-4, atol=1e-4)
