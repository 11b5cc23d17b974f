"""The next block is read, and moved to the device, while the walk works on the one before it.

One reader in the background does it. On a GPU what it brings goes through pinned memory on a stream of its
own, beside what is computed there. At most two blocks are there at a time: one at work, one waiting.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from owl_compress.models.residence import fetch, residence_of
from owl_compress.models.state import parameter_device


class Ahead:
    """Who has the weights of a block brought before its turn comes; see `reading_ahead`."""

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device, reader: ThreadPoolExecutor) -> None:
        self._blocks = blocks
        self._device = device
        self._reader = reader
        self._carrier = _Carrier(device)
        self._under_way: dict[int, Future[dict[str, Tensor]]] = {}
        self._uses = Counter(id(tensor) for block in blocks for tensor in _of(block))

    def start(self, index: int) -> None:
        """Begin to read block `index`, if there is one whose weights are elsewhere than on the device."""
        if index < len(self._blocks) and self._travels(self._blocks[index]):
            self._under_way[index] = self._reader.submit(fetch, self._blocks[index], self._carrier.bring)

    def take(self, index: int) -> dict[str, Tensor] | None:
        """What was read of block `index`, once all of it is there; None if nobody began to.

        Raises:
            RequestError: what went wrong with reading it.
        """
        under_way = self._under_way.pop(index, None)
        return None if under_way is None else self._carrier.handed_over(under_way.result())

    def _travels(self, block: nn.Module) -> bool:
        """Whether its weights come from elsewhere; those of another block, too, may change until its turn."""
        if residence_of(block) is not None:
            return True
        moves = parameter_device(block).type == "cpu" and self._device.type != "cpu"
        return moves and all(self._uses[id(tensor)] == 1 for tensor in _of(block))


@contextmanager
def reading_ahead(blocks: Sequence[nn.Module], device: torch.device) -> Iterator[Ahead]:
    """Yield who brings blocks to `device` ahead; however this is left, the reader has ended then."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="owl-compress-reader") as reader:
        try:
            yield Ahead(blocks, device, reader)
        finally:
            reader.shutdown(cancel_futures=True)


def _of(block: nn.Module) -> list[Tensor]:
    return [*block.parameters(), *block.buffers()]


class _Carrier:
    """Copies tensors of the host to a device; to a GPU while that computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]
        self._pinned = torch.empty(0, dtype=torch.uint8)

    def bring(self, tensor: Tensor) -> Tensor:
        """A copy there; it is complete when this returns."""
        if self._stream is None:
            return tensor.to(self._device, copy=True)
        n_bytes = tensor.numel() * tensor.element_size()
        if self._pinned.numel() < n_bytes:
            self._pinned = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
        staged = self._pinned[:n_bytes].view(tensor.dtype).view(tensor.shape)
        staged.copy_(tensor)
        with torch.cuda.stream(self._stream):
            there = staged.to(self._device, non_blocking=True)
        self._stream.synchronize()  # the pinned memory is wanted for the next
        return there

    def handed_over(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same, for who works on the device's current stream from here on."""
        if self._stream is not None:
            for tensor in tensors.values():
                tensor.record_stream(torch.cuda.current_stream(self._device))
        return tensors
