"""Which sequences a step sees, and how far it goes."""

import math
from dataclasses import dataclass

import numpy as np


def learning_rate_share(step: int, steps: int, warm_up: float) -> float:
    """The share of the highest learning rate in a step, counted from 0: a linear rise, then half a cosine.

    The rise takes the share `warm_up` of all steps and ends at 1; the cosine would reach 0 one step behind
    the last.
    """
    rising = math.ceil(warm_up * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


@dataclass(frozen=True)
class Order:
    """Which sequences each step sees: all of them in random order, again and again in other orders.

    Attributes:
        n_sequences: that there are.
        per_step: that a step sees.
        seed: of the orders.
    """

    n_sequences: int
    per_step: int
    seed: int

    def indices(self, step: int) -> list[int]:
        """Of the sequences that this step sees, counted from 0; a function of the step alone."""
        places = range(step * self.per_step, (step + 1) * self.per_step)
        orders = {epoch: self._order(epoch) for epoch in {place // self.n_sequences for place in places}}
        return [int(orders[place // self.n_sequences][place % self.n_sequences]) for place in places]

    def _order(self, epoch: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        return np.random.default_rng([self.seed % 2**64, epoch]).permutation(self.n_sequences)
