"""The processes that torchrun started with this one, for the command line."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from owl_compress.walk.ranks import Ranks


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Work together with them while the block lasts; alone, where torchrun started none.

    Raises:
        RequestError: another one has gone, or did not answer in time.
    """
    ranks = Ranks.from_environment()
    with ranks.joined(device):
        yield ranks
