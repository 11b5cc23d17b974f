"""The processes that train one model together, as torchrun starts them."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from owl_compress.errors import RequestError

_PATIENCE = timedelta(minutes=30)
"""That processes wait for each other, before all of them end."""


@dataclass(frozen=True)
class Ranks:
    """One of `of` processes, counted from 0; the first writes."""

    rank: int = 0
    of: int = 1

    @property
    def leads(self) -> bool:
        """Whether this one writes and tells."""
        return self.rank == 0

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] | None = None) -> "Ranks":
        """As torchrun says it by RANK and WORLD_SIZE; alone, where nobody does."""
        variables = os.environ if variables is None else variables
        rank, of = variables.get("RANK", ""), variables.get("WORLD_SIZE", "")
        if not rank.isdecimal() or not of.isdecimal() or int(of) < 1:
            return cls()
        return cls(int(rank), int(of))

    def device(self, asked: torch.device) -> torch.device:
        """Where this process trains: on a GPU of its own, as torchrun numbers them by LOCAL_RANK.

        Raises:
            RequestError: more processes than GPUs.
        """
        if asked.type != "cuda" or self.of == 1:
            return asked
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise RequestError(
                f"process {local} of torchrun has no GPU of {torch.cuda.device_count()}: start as many"
            )
        return torch.device("cuda", local)

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Be a group while the block lasts: over NCCL on GPUs, over gloo elsewhere."""
        if self.of == 1:
            yield
            return
        library = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(library, timeout=_PATIENCE, rank=self.rank, world_size=self.of)
        try:
            yield
        finally:
            distributed.destroy_process_group()

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
