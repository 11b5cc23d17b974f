"""What the role of a linear says of where it belongs: its sublayer, and what servers fuse it with."""

from owl_compress.documents.units import Sublayer

_FUSED = {
    "attn.q": "attn.qkv",
    "attn.k": "attn.qkv",
    "attn.v": "attn.qkv",
    "mlp.gate": "mlp.gate_up",
    "mlp.up": "mlp.gate_up",
}


def sublayer_of(role: str) -> str:
    """The sublayer of linears of this role: "attn.q" is of "attention"; an unknown role is its own."""
    kind = role.partition(".")[0]
    return Sublayer.ATTENTION if kind == "attn" else kind


def fused_role(role: str) -> str | None:
    """What inference servers make of linears of this role, joined with others; None where they stay apart."""
    return _FUSED.get(role)
