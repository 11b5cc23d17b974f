"""llama.cpp: a file for `llama-quantize --tensor-type-file`, the nearest type for the bits of each linear."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from owl_compress.documents.plan import Plan
from owl_compress.documents.units import BIT_WIDTHS, Unit
from owl_compress.errors import RequestError
from owl_compress.exports.contract import Exported, Foreign
from owl_compress.exports.names import check_widths

# Name in transformers, its last two parts or its last one, to that in GGUF (gguf.TensorNameMap).
_TENSORS = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v",
    "o_proj": "attn_output", "out_proj": "attn_output", "qkv_proj": "attn_qkv",
    "query_key_value": "attn_qkv", "c_attn": "attn_qkv",
    "attn.c_proj": "attn_output", "attention.dense": "attn_output", "self_attention.dense": "attn_output",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "gate_up_proj": "ffn_up", "down_proj": "ffn_down",
    "fc1": "ffn_up", "fc2": "ffn_down", "c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    "dense_h_to_4h": "ffn_up", "dense_4h_to_h": "ffn_down",
}  # fmt: skip

_TYPES = {2: ("q2_k", 2.625), 3: ("q3_k", 3.4375), 4: ("q4_k", 4.5), 5: ("q5_k", 5.5), 6: ("q6_k", 6.5625),
          7: ("q6_k", 6.5625), 8: ("q8_0", 8.5)}  # fmt: skip
"""The type for so many bits, and what a weight takes in it, scales included (ggml's block layouts)."""

_LINE = re.compile(r"\^blk\\\.(\d+)\\\.(\w+)\\\.weight\$=(\w+)")


@dataclass(frozen=True)
class GgufTensorTypes:
    """One line for each tensor: a pattern of its whole name, "=", and a type of ggml.

    K-quants have scales of two levels, so that their weights take more than the plan says: q2_k 2.63 bits,
    q3_k 3.44, q4_k 4.5, q5_k 5.5, q6_k 6.56, q8_0 8.5. Seven bits become q6_k, never more than the plan.
    """

    name: ClassVar[str] = "gguf-tensor-types"
    units: ClassVar[tuple[Unit, ...]] = (Unit.BITS,)

    def write(self, plan: Plan) -> Exported:
        """The linears by the names that GGUF has for them."""
        check_widths(plan, BIT_WIDTHS, "llama-quantize")
        lines, taken, seen = [], 0.0, set()
        for budget in plan.budgets:
            tensor = tensor_name(budget.name)
            kind, bits = _TYPES[round(budget.value)]
            taken += bits * budget.n_weights
            lines.append(f"^{re.escape(tensor)}$={kind}")
            seen.add((round(budget.value), kind, bits))
        mean = taken / sum(budget.n_weights for budget in plan.budgets)
        types = ", ".join(f"{width} bits as {kind} ({bits:g})" for width, kind, bits in sorted(seen))
        notes = [f"nearest types, with their scales: {types}; {mean:.3f} bits a weight on average"]
        if plan.skipped:
            notes.append(
                f"{len(plan.skipped)} skipped linears get the type that llama-quantize is called with"
            )
        return Exported("\n".join(lines) + "\n", tuple(notes))

    def read(self, text: str, sizes: Mapping[str, int]) -> Foreign:
        """Patterns as they are written here; a type stands for the bits in its name."""
        of_tensor = {tensor_name(name): name for name in sizes}
        values: dict[str, float] = {}
        for number, line in enumerate(text.split(), start=1):
            found = _LINE.fullmatch(line)
            bits = {kind: width for width, (kind, _) in _TYPES.items() if width != 7}
            if not found or found[3] not in bits:
                raise RequestError(f"line {number} is no tensor of a block with a type of ours: {line}")
            tensor = f"blk.{found[1]}.{found[2]}.weight"
            values[of_tensor.get(tensor, tensor)] = float(bits[found[3]])
        return Foreign(Unit.BITS, values, tuple(name for name in sizes if name not in values))


def tensor_name(linear: str) -> str:
    """The name that GGUF has for the weight of a linear: "blk.3.attn_q.weight".

    Raises:
        RequestError: of a family whose names are not known here.
    """
    parts = linear.split(".")
    block = next((part for part in parts if part.isdigit()), None)
    tensor = _TENSORS.get(".".join(parts[-2:])) or _TENSORS.get(parts[-1])
    if block is None or tensor is None:
        raise RequestError(
            f"{linear} has no name in GGUF that is known here: use --to csv, and map it yourself"
        )
    return f"blk.{block}.{tensor}.weight"
