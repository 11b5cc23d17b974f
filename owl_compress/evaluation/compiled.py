"""Decoding through torch.compile with a static cache, as `generate` does with such a cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import StaticCache

from owl_compress.errors import RequestError


class CompiledDecoder:
    """The part of a model below its head, compiled for one token at a time; the prompt is read as it is.

    In eager mode every token costs some tens of calls from Python in each block, whatever the block's size;
    small or narrowed blocks, and all blocks on a fast GPU, wait for those and not for their weights. On CUDA
    the compiled code is recorded as CUDA graphs (mode "reduce-overhead").

    Once the code has run, only the guards that tell one compiled model from another are looked at again: all
    of them together cost a small model more than a millisecond a token, and here neither shapes nor modules
    change.

    Raises:
        RequestError: a model that says of itself that it cannot be compiled.
    """

    def __init__(self, model: Any, n_positions: int, device: torch.device) -> None:
        if not getattr(model, "_can_compile_fullgraph", False):
            raise RequestError(f"{type(model).__name__} cannot be compiled for decoding: drop --compile")
        self.module: nn.Module = model.base_model
        self._cache = StaticCache(config=model.config, max_cache_len=n_positions)
        mode = "reduce-overhead" if device.type == "cuda" else None
        self._forward = torch.compile(self.module.forward, mode=mode, dynamic=False)
        self._has_run = False

    def empty_cache(self) -> StaticCache:
        """The cache, with nothing in it; always the same tensors, which the compiled code knows."""
        self._cache.reset()
        return self._cache

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Let the module run the compiled code; the first pass compiles, which takes a minute or more.

        Raises:
            RequestError: the compiler is missing, or gives up.
        """
        from torch._dynamo.exc import TorchDynamoException  # noqa: PLC0415 - takes seconds

        names = vars(self.module)
        before = names.get("forward")
        self.module.forward = self._forward
        try:
            with torch.compiler.set_stance("default", skip_guard_eval_unsafe=self._has_run):
                yield
            self._has_run = True
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise RequestError(
                f"--compile failed ({reason}): it needs a C++ compiler for a CPU, Triton for a GPU; install "
                "what is missing, or drop it"
            ) from error
        finally:
            del names["forward"]
            if before is not None:
                names["forward"] = before
