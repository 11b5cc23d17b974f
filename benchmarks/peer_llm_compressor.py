"""One run of llm-compressor with its own defaults on given token ids; `peers.py` calls it.

python peer_llm_compressor.py wanda|sparsegpt|gptq TOKENS MODEL OUT AMOUNT

AMOUNT is the sparsity, or the bits of a weight (symmetric, groups of 64).
"""

import json
import sys
from pathlib import Path
from typing import Any

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier


def main() -> None:
    """One call of `oneshot`."""
    method, tokens, model, out, amount = sys.argv[1:]
    rows = json.loads(Path(tokens).read_text(encoding="utf-8"))
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    oneshot(
        model=model, tokenizer=model, recipe=_modifier(method, amount), output_dir=out, dataset=data,
        num_calibration_samples=len(rows), shuffle_calibration_samples=False, max_seq_length=len(rows[0]),
    )  # fmt: skip


def _modifier(method: str, amount: str) -> Any:
    if method == "gptq":
        weights = QuantizationArgs(num_bits=int(amount), symmetric=True, strategy="group", group_size=64)
        groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
        return GPTQModifier(config_groups=groups, ignore=["lm_head"])
    modifier = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[method]
    return modifier(sparsity=float(amount), ignore=["lm_head"])


if __name__ == "__main__":
    main()
