"""Is a narrowed model as fast as its size promises? Dense and pruned in turns in one process.

    python benchmarks/latency.py [--shape llama-7b] [--batch-sizes 1,16] [--compile] > rows.jsonl

Four ratios, uniform, importance magnitude: speed does not depend on which units stay. `promised` is the
blocks' weights before over after; `blocks` and `whole` are times of the dense model over those of the pruned
one. The Llama shapes have random weights, bfloat16 on a GPU; of them only `tinyllama-1b` is for a CPU.
"""

import argparse
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

import torch
from rows import print_row
from transformers import AutoModelForCausalLM, LlamaConfig

from owl_compress import compress_, load
from owl_compress.allocators import Target, allocate
from owl_compress.backends.structured import Structured
from owl_compress.estimator import outline
from owl_compress.families import find_structure
from owl_compress.latency import compare
from owl_compress.latency_record import LatencyRecord, LatencyShape

_RATIOS = (0.2, 0.4, 0.6, 0.8)
_LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
_LLAMA_3_8B = {**_LLAMA_7B, "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256}
_LLAMA_1B = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_key_value_heads": 4,
}
_SHAPES: dict[str, dict[str, int]] = {
    "tinyllama-1b": {**_LLAMA_1B, "num_attention_heads": 32, "num_key_value_heads": 4},
    "llama-7b": {**_LLAMA_7B, "num_attention_heads": 32},
    "llama-3-8b": {**_LLAMA_3_8B, "num_attention_heads": 32},
    "tiny": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 4},
}


def main() -> None:
    """One row for every ratio and batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="builtin", choices=["builtin", *_SHAPES])
    parser.add_argument("--batch-sizes", default="1")
    parser.add_argument("--prompt-len", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--ratios", default=",".join(map(str, _RATIOS)))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="decode through torch.compile")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dense = _dense(arguments.shape, device)
    n_before = _block_weights(dense)
    for ratio, pruned in _pruned(dense, map(float, arguments.ratios.split(","))):
        promised = n_before / _block_weights(pruned)
        for batch_size in map(int, arguments.batch_sizes.split(",")):
            shape = LatencyShape(
                batch_size=batch_size, prompt_len=arguments.prompt_len, new_tokens=arguments.new_tokens
            )
            models = {"dense": dense, f"pruned by {ratio}": pruned}
            before, after = compare(models, shape, device, runs=arguments.repeats, compiled=arguments.compile)
            name = f"{arguments.shape} {ratio}" + (" compiled" if arguments.compile else "")
            _report(name, before, after, promised)


def _dense(name: str, device: torch.device) -> Any:
    if name == "builtin":
        return load("builtin", device=device).model
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        return AutoModelForCausalLM.from_config(LlamaConfig(**_SHAPES[name]), dtype=dtype).eval()


def _pruned(dense: Any, ratios: Iterable[float]) -> Iterator[tuple[float, Any]]:
    for ratio in ratios:
        model = deepcopy(dense)
        plan = allocate(outline(model), "uniform", Target.from_prune_ratio(ratio))
        compress_(model, plan, Structured(importance="magnitude"))
        yield ratio, model


def _block_weights(model: Any) -> int:
    return sum(linear.n_weights for linear in find_structure(model).linears)


def _report(name: str, before: LatencyRecord, after: LatencyRecord, promised: float) -> None:
    for step in ("prefill_seconds", "decode_seconds_per_token"):
        blocks = getattr(before.blocks, step) / getattr(after.blocks, step)
        print_row(
            "latency",
            name=name,
            step=step.partition("_")[0],
            promised=promised,
            blocks=blocks,
            blocks_of_promised=blocks / promised,
            whole=getattr(before, step) / getattr(after, step),
            dense=before.model_dump(mode="json"),
            pruned=after.model_dump(mode="json"),
        )


if __name__ == "__main__":
    main()
