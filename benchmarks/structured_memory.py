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
from dataclasses import dataclass
from types import TracebackType
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
from owl_compress.calibration import TokenWindows, token_ids_sha256
from owl_compress.compression import WalkOptions, compress_with_
from owl_compress.device import resolve_device
from owl_compress.estimator import outline
from owl_compress.report import CalibrationRecord

HOST = torch.device("cpu")
RATIO = 0.4
_VOCABULARY = 259


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
    """Follows the bytes of all tensors made inside, those that are weights of `model` by now left out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._model = model
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._upper_bound = 0  # of what is alive: the dead are only looked for where it would be a new peak
        self._before: set[int] = set()

    def __enter__(self) -> Self:
        self._before = self._weights()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._live.clear()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(answer):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return answer

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata  # noqa: SLF001 - the identity of the storage, which has no public name
        known = self._live.get(key)
        if key in self._before or (known is not None and not known[0].expired()):
            return
        self._live[key] = (StorageWeakRef(storage), storage.nbytes())
        self._upper_bound += storage.nbytes()
        if self._upper_bound > self.peak_bytes:
            self._bury_the_dead()
            self.peak_bytes = max(self.peak_bytes, self._upper_bound)

    def _bury_the_dead(self) -> None:
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        weights = self._weights()
        self._upper_bound = sum(n_bytes for key, (_, n_bytes) in self._live.items() if key not in weights)

    def _weights(self) -> set[int]:
        tensors = (*self._model.parameters(), *self._model.buffers())
        return {tensor.untyped_storage()._cdata for tensor in tensors}  # noqa: SLF001
