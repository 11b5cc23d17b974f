"""Which of several processes this one is, that carry out the cells of the same comparison."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

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
