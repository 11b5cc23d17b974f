"""Which of several processes this one is, that carry out the cells of the same comparison."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from owl_compress.errors import RequestError
from owl_compress.torchrun import rank_and_world_size


@dataclass(frozen=True)
class Share:
    """One of `of` processes, counted from 0; the first leads: it begins the folder and ends it.

    Attributes:
        rank, of: which, and of how many.
        leads: whether this one writes what is there once, and waits until every cell has its row.
        start: size of the log of rows when they all began; None for the size it has now.
        parent: the process that started this one and answers for it; None for none.
    """

    rank: int = 0
    of: int = 1
    leads: bool = True
    start: int | None = None
    parent: int | None = None

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] | None = None) -> "Share":
        """As torchrun says it by RANK and WORLD_SIZE; alone, where nobody does."""
        rank, of = rank_and_world_size(variables)
        return cls(rank, of, leads=rank == 0)

    def is_abandoned(self) -> bool:
        """Whether who answers for this process has gone."""
        return self.parent is not None and os.getppid() != self.parent


def own_gpu(variables: Mapping[str, str] | None = None) -> str | None:
    """The GPU of this process alone, which torchrun gives by LOCAL_RANK; None where there is none.

    Raises:
        RequestError: more processes than GPUs.
    """
    import torch  # noqa: PLC0415 - a refusal of the grid must not wait for it

    local = (os.environ if variables is None else variables).get("LOCAL_RANK", "")
    n_gpus = torch.cuda.device_count()
    if not local.isdecimal() or not n_gpus:
        return None
    if int(local) >= n_gpus:
        raise RequestError(f"process {local} of torchrun has no GPU: there are {n_gpus}: start as many")
    return f"cuda:{local}"
