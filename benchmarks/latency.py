"""Is a narrowed model as fast as its size promises? Dense and pruned in turns in one process.

    python benchmarks/latency.py [--shape llama-7b] [--batch-sizes 1,16] [--compile] > rows.jsonl

Four ratios, uniform, importance magnitude: speed does not depend on which units stay. `promised` is the
blocks' weights before over after; `blocks` and `whole` are times of the dense model over those of the pruned
one. `products` is that ratio for the blocks' matrix products alone, one after another with nothing between
them: what the pruned blocks would gain if all else in them were free. The Llama shapes have random weights,
bfloat16 on a GPU; of them only `tinyllama-1b` is for a CPU.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from itertools import chain
from statistics import median
from typing import Any

import torch
from rows import print_row
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, LlamaConfig

from owl_compress import compress_, load
from owl_compress.allocators import Target, allocate
from owl_compress.backends.structured import Structured
from owl_compress.documents.measurements import LatencyRecord, LatencyShape
from owl_compress.evaluation.latency import compare
from owl_compress.evaluation.stopwatch import now
from owl_compress.importance.estimator import outline
from owl_compress.models.structure import find_structure

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
            for step, n_tokens in (("prefill", batch_size * arguments.prompt_len), ("decode", batch_size)):
                products = _products([dense, pruned], n_tokens, arguments.repeats)
                _report(name, step, before, after, promised, products)


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
    return sum(site.n_weights for site in find_structure(model).linears)


@torch.inference_mode()
def _products(models: Sequence[Any], n_tokens: int, repeats: int) -> list[float]:
    """Seconds of all matrix products in each model's blocks: medians, the models in turn, a warm-up first."""
    seconds: list[list[float]] = [[] for _ in models]
    weights = [[site.weight for site in find_structure(model).linears] for model in models]
    inputs = {weight.shape[1]: weight.new_ones(n_tokens, weight.shape[1]) for weight in chain(*weights)}
    for _ in range(1 + repeats):
        for of_model, taken in zip(weights, seconds, strict=True):
            start = now(of_model[0].device)
            for weight in of_model:
                linear(inputs[weight.shape[1]], weight)
            taken.append(now(of_model[0].device) - start)
    return [median(taken[1:]) for taken in seconds]


def _report(
    name: str,
    step: str,
    before: LatencyRecord,
    after: LatencyRecord,
    promised: float,
    products: Sequence[float],
) -> None:
    measured = {"prefill": "prefill_seconds", "decode": "decode_seconds_per_token"}[step]
    blocks = getattr(before.blocks, measured) / getattr(after.blocks, measured)
    print_row(
        "latency",
        name=name,
        step=step,
        promised=promised,
        products=products[0] / products[1],
        products_seconds=products,
        blocks=blocks,
        blocks_of_promised=blocks / promised,
        whole=getattr(before, measured) / getattr(after, measured),
        dense=before.model_dump(mode="json"),
        pruned=after.model_dump(mode="json"),
    )


if __name__ == "__main__":
    main()
