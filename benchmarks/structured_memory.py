"""How much memory does structured removal take beside the model, and does it grow with the number of blocks?

    python benchmarks/structured_memory.py [--blocks 4,8,16] [--importance wanda] [--hidden 256] > rows.jsonl

Random Llamas that differ in depth alone, 40 % removed. What counts is what a device would have to hold while
the model stays on the host: the block at work and whatever is made on the way, without the model's other
weights and without the hidden states between blocks, which lie on the host (`kept_bytes`).

On CUDA the bytes are those of torch's allocator. On a CPU every tensor that torch hands out is followed from
its making to its end; workspaces inside a kernel, which no tensor shows, are not seen there.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from rows import print_row
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from owl_compress.allocators import Target, allocate
from owl_compress.backends.structured import Structured
from owl_compress.compression.driver import WalkOptions, compress_with_
from owl_compress.data.windows import TokenWindows, token_ids_sha256
from owl_compress.device import resolve_device
from owl_compress.documents.provenance import CalibrationRecord
from owl_compress.importance.estimator import outline

HOST = torch.device("cpu")
RATIO = 0.4
_VOCABULARY = 259
_PAGE = 4096


@dataclass(frozen=True)
class Memory:
    """Bytes; `working_bytes` is the peak of all that is neither the model's weights nor `kept_bytes`."""

    model_bytes: int
    block_bytes: int
    largest_linear_bytes: int
    kept_bytes: int
    working_bytes: int

    @property
    def device_bytes(self) -> int:
        """What a device has to hold: one block and what is made on the way."""
        return self.block_bytes + self.working_bytes


class TensorCount(TorchDispatchMode):
    """Follows all tensors made inside; `peak_bytes` are the most that were alive beside the model's weights.

    A weight that was cut off the model and is still held by somebody counts, too. Tensors below a page are
    counted with the next larger one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._modules = list(model.modules())
        # A weak reference keeps the identity of its storage from being given to another one.
        self._known: dict[int, tuple[StorageWeakRef, int]] = {}

    def __enter__(self) -> Self:
        for weight in self._weights():
            self._note(weight)
        super().__enter__()
        return self

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(answer) if isinstance(leaf, Tensor) and self._note(leaf)]
        if any(tensor.untyped_storage().nbytes() >= _PAGE for tensor in made):
            self._count()
        return answer

    def _note(self, tensor: Tensor) -> bool:
        """Whether the tensor lies in memory that was not known."""
        storage = tensor.untyped_storage()
        is_new = _identity(tensor) not in self._known
        if is_new:
            self._known[_identity(tensor)] = StorageWeakRef(storage), storage.nbytes()
        return is_new

    def _count(self) -> None:
        self._known = {key: known for key, known in self._known.items() if not known[0].expired()}
        weights = {_identity(weight) for weight in self._weights()}
        alive = sum(n_bytes for key, (_, n_bytes) in self._known.items() if key not in weights)
        self.peak_bytes = max(self.peak_bytes, alive)

    def _weights(self) -> Iterator[Tensor]:
        for module in self._modules:
            yield from (weight for weight in module._parameters.values() if weight is not None)  # noqa: SLF001
            yield from (buffer for buffer in module._buffers.values() if buffer is not None)  # noqa: SLF001


def _identity(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # noqa: SLF001 - it has no public name


def random_llama(n_blocks: int, hidden: int) -> LlamaForCausalLM:
    """A Llama of random float32 weights, with the proportions of a large one: always the same."""
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=hidden,
        intermediate_size=11 * hidden // 4,
        num_hidden_layers=n_blocks,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def random_windows(sequences: int, seq_len: int) -> TokenWindows:
    """Token ids drawn at random: memory does not depend on which."""
    ids = torch.randint(_VOCABULARY, (sequences, seq_len), generator=torch.Generator().manual_seed(0))
    record = CalibrationRecord(
        source="random ids",
        token_ids_sha256=token_ids_sha256(ids),
        sequences=sequences,
        seq_len=seq_len,
        sampling="random",
        seed=0,
        bos="never",
    )
    return TokenWindows(ids, record)


def measure_memory(
    model: LlamaForCausalLM, windows: TokenWindows, backend: Structured, device: torch.device
) -> Memory:
    """Prune `model`, which lies on the host, in place; what that takes on `device`."""
    blocks = model.model.layers
    n_bytes = [weight.numel() * weight.element_size() for weight in blocks[0].parameters()]
    model_bytes = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    hidden_states = windows.ids.numel() * model.config.hidden_size * model.dtype.itemsize
    plan = allocate(outline(model), "uniform", Target.from_prune_ratio(RATIO))
    options = WalkOptions(device=device, keep_on=HOST)
    with _watched(model, device) as peak:
        compress_with_(model, plan, backend, windows, options)
    # On CUDA the block at work is among the bytes, the hidden states are not; on a CPU the other way round.
    beside = sum(n_bytes) if device.type == "cuda" else hidden_states
    return Memory(model_bytes, sum(n_bytes), max(n_bytes), hidden_states, peak() - beside)


@contextmanager
def _watched(model: nn.Module, device: torch.device) -> Iterator[Callable[[], int]]:
    """Watch tensors on `device`; the function says how many bytes there were at most."""
    if device.type == "cuda":
        torch.linalg.cholesky(
            torch.eye(8, device=device) @ torch.eye(8, device=device)
        )  # workspaces that stay
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
        return
    with TensorCount(model) as count:
        yield lambda: count.peak_bytes


def main() -> None:
    """Print one row for each depth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", default="4,8,16")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--importance", default="wanda")
    parser.add_argument("--repair", action="store_true")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    windows = random_windows(arguments.samples, arguments.seq_len)
    backend = Structured(importance=arguments.importance, repair=arguments.repair)
    for n_blocks in map(int, arguments.blocks.split(",")):
        model = random_llama(n_blocks, arguments.hidden)
        memory = measure_memory(model, windows, backend, resolve_device(arguments.device))
        print_row(
            "structured_memory",
            importance=arguments.importance,
            repair=arguments.repair,
            blocks=n_blocks,
            hidden=arguments.hidden,
            samples=arguments.samples,
            seq_len=arguments.seq_len,
            counted="torch.cuda allocator" if torch.cuda.is_available() else "live tensors",
            **asdict(memory),
            device_bytes=memory.device_bytes,
            device_over_model=memory.device_bytes / memory.model_bytes,
        )


if __name__ == "__main__":
    main()
