"""The processes that work on one model together, as torchrun starts them: who does what, what is summed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

from owl_compress.errors import RequestError
from owl_compress.torchrun import rank_and_world_size

T = TypeVar("T")

PATIENCE = timedelta(minutes=10)
"""That processes wait for one that does not answer, before all of them end."""


@dataclass(frozen=True)
class Ranks:
    """One of `of` processes, counted from 0; the first leads: it writes and speaks."""

    rank: int = 0
    of: int = 1

    @property
    def leads(self) -> bool:
        """Whether this one writes and tells."""
        return self.rank == 0

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] | None = None) -> "Ranks":
        """As torchrun says it by RANK and WORLD_SIZE; alone, where nobody does."""
        return cls(*rank_and_world_size(variables))

    @classmethod
    def current(cls) -> "Ranks":
        """Those of the process group that this process has joined; alone, if it has joined none."""
        if not distributed.is_available() or not distributed.is_initialized():
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Be a group while the block lasts: over NCCL on GPUs, over gloo elsewhere.

        Raises:
            RequestError: another process has gone, or did not answer in time.
        """
        if self.of == 1 or self.current().of > 1:  # whoever called has joined one already
            yield
            return
        library = "nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group(library, timeout=PATIENCE, rank=self.rank, world_size=self.of)
        try:
            yield
        except RequestError as error:
            raise error if self.leads else RequestError(f"process {self.rank}: {error}") from error
        except distributed.DistError as error:
            raise RequestError(self._lost(error)) from error
        except RuntimeError as error:  # gloo has no error type of its own
            if "gloo" not in str(error):
                raise
            raise RequestError(self._lost(error)) from error
        finally:
            distributed.destroy_process_group()

    def _lost(self, error: Exception) -> str:
        reason = " ".join(str(error).split())[:200]
        return (
            f"process {self.rank}: another of the {self.of} has gone, or did not answer for "
            f"{PATIENCE.seconds // 60} minutes ({reason}): see what that one said"
        )

    def mine(self, items: Sequence[T], what: str) -> list[T]:
        """The share of this process: every so-manieth of `items`, beginning at its own number.

        Raises:
            RequestError: there are fewer than processes.
        """
        if self.of > 1 and len(items) < self.of:
            raise RequestError(
                f"{len(items)} {what} cannot be divided among {self.of} processes: give more --samples, a "
                "smaller --batch-size, or start fewer"
            )
        return list(items[self.rank :: self.of])

    def share(self, passes: int) -> range:
        """Which of the forward passes of a step this process does.

        Raises:
            RequestError: they cannot be divided evenly.
        """
        if passes % self.of:
            raise RequestError(
                f"{passes} forward passes a step cannot be divided among {self.of} processes: set "
                f"--accumulate to a multiple of {self.of}"
            )
        return range(self.rank, passes, self.of)

    def add_up_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by the sum over all processes, the same to the bit in each of them."""
        if self.of > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)

    def gathered(self, found: T) -> list[T]:
        """What every process found, in the order of their numbers."""
        if self.of == 1:
            return [found]
        all_found: list[T] = [found] * self.of
        distributed.all_gather_object(all_found, found)
        return all_found

    def spread_(self, tensors: Sequence[Tensor], source: int = 0) -> None:
        """Replace each tensor by what the process `source` has of it."""
        if self.of == 1:
            return
        for tensor in tensors:
            if tensor.numel():
                whole = tensor.contiguous()
                distributed.broadcast(whole, src=source)
                tensor.copy_(whole)
