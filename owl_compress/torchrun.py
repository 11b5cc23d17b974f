"""What torchrun says to the processes that it starts; asking loads no torch."""

import os
from collections.abc import Mapping


def rank_and_world_size(variables: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Which of how many processes this one is, by RANK and WORLD_SIZE: (0, 1) where nobody says it."""
    variables = os.environ if variables is None else variables
    rank, of = variables.get("RANK", ""), variables.get("WORLD_SIZE", "")
    if not rank.isdecimal() or not of.isdecimal() or int(of) < 1:
        return 0, 1
    return int(rank), int(of)
