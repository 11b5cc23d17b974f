"""The table of families: where their blocks are, and what role each linear of a block plays."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

_LLAMA_LIKE = {
    "self_attn.q_proj": "attn.q",
    "self_attn.k_proj": "attn.k",
    "self_attn.v_proj": "attn.v",
    "self_attn.o_proj": "attn.o",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
}
_FUSED_DENSE = {"mlp.dense_h_to_4h": "mlp.fc1", "mlp.dense_4h_to_h": "mlp.fc2"}


@dataclass(frozen=True)
class Family:
    """One row of the table: where the blocks are, and the role of each linear by its name inside the block.

    `bos` says how the family wants its windows to start: "every" where it is lost without a BOS token in
    each window (Gemma), "first" otherwise.
    """

    name: str
    blocks: str
    roles: Mapping[str, str]
    bos: Literal["every", "first"] = "first"


_FAMILIES = (
    Family("llama", "model.layers", _LLAMA_LIKE),
    Family("mistral", "model.layers", _LLAMA_LIKE),
    Family("qwen2", "model.layers", _LLAMA_LIKE),
    Family("qwen3", "model.layers", _LLAMA_LIKE),
    Family("gemma2", "model.layers", _LLAMA_LIKE, bos="every"),
    Family("gemma3_text", "model.layers", _LLAMA_LIKE, bos="every"),
    # Gemma 3 with a vision tower beside the text part
    Family("gemma3", "model.language_model.layers", _LLAMA_LIKE, bos="every"),
    Family(
        "phi3",
        "model.layers",
        {
            "self_attn.qkv_proj": "attn.qkv",
            "self_attn.o_proj": "attn.o",
            "mlp.gate_up_proj": "mlp.gate_up",
            "mlp.down_proj": "mlp.down",
        },
    ),
    Family(
        "opt",
        "model.decoder.layers",
        {
            "self_attn.q_proj": "attn.q",
            "self_attn.k_proj": "attn.k",
            "self_attn.v_proj": "attn.v",
            "self_attn.out_proj": "attn.o",
            "fc1": "mlp.fc1",
            "fc2": "mlp.fc2",
        },
    ),
    Family(
        "gpt2",
        "transformer.h",
        {"attn.c_attn": "attn.qkv", "attn.c_proj": "attn.o", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"},
    ),
    Family(
        "gpt_neox",
        "gpt_neox.layers",
        {"attention.query_key_value": "attn.qkv", "attention.dense": "attn.o", **_FUSED_DENSE},
    ),
    Family(
        "bloom",
        "transformer.h",
        {"self_attention.query_key_value": "attn.qkv", "self_attention.dense": "attn.o", **_FUSED_DENSE},
    ),
    Family(
        "falcon",
        "transformer.h",
        {"self_attention.query_key_value": "attn.qkv", "self_attention.dense": "attn.o", **_FUSED_DENSE},
    ),
)
FAMILIES: Mapping[str, Family] = {family.name: family for family in _FAMILIES}

UNKNOWN_ROLE = "other"
"""Of a linear whose place in the block no table names."""
