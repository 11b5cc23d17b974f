"""The dense model's predictions on some windows, for a model compressed as a whole to be held against."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from owl_compress.data.windows import TokenWindows
from owl_compress.models.structure import ModelStructure, found_again
from owl_compress.progress import SILENT, Progress
from owl_compress.walk.outputs import OutputDistribution, final_states, positions_of

TOKENS_AT_ONCE = 2048
"""Tokens that go through a block together: enough for matrix products to be fast."""

DEFAULT_POSITIONS = 256
"""Positions whose predictions are compared, over all windows: a head costs as much as some blocks."""


@dataclass(frozen=True)
class DenseReference:
    """What the dense model makes of some windows; the model itself may be compressed afterwards.

    Attributes:
        structure: of the dense model.
        windows: token windows, shape [windows, seq_len].
        states: behind its last block, by batch, on the host.
        n_positions: positions that are compared, over all windows.
        device: where blocks are run.
        batch_size: windows per forward pass.
    """

    structure: ModelStructure
    windows: TokenWindows
    states: Sequence[Tensor]
    n_positions: int
    device: torch.device
    batch_size: int

    @classmethod
    def of(
        cls,
        model: nn.Module,
        structure: ModelStructure,
        windows: TokenWindows,
        device: torch.device,
        *,
        n_positions: int = DEFAULT_POSITIONS,
        batch_size: int = 1,
        progress: Progress = SILENT,
    ) -> "DenseReference":
        """Run the dense `model` over the `windows`; it is unchanged afterwards."""
        batch_size = max(batch_size, TOKENS_AT_ONCE // windows.record.seq_len)
        states = final_states(model, structure, windows.batches(batch_size), device, progress)
        return cls(structure, windows, states, n_positions, device, batch_size)

    def distribution(self, model: nn.Module, structure: ModelStructure) -> OutputDistribution:
        """The dense predictions, through the final norm and head of `model`, which are the dense model's."""
        positions = positions_of(self.windows, self.n_positions)
        return OutputDistribution(model, structure, self.windows, self.states, positions)

    def divergence_of(self, model: nn.Module, progress: Progress = SILENT) -> float:
        """KL(dense ‖ `model`) in nats, mean over the positions; the same model, or a copy, compressed."""
        structure, states = self._run(model, progress)
        (divergence,) = self.distribution(model, structure).divergences([states])
        return divergence

    def divergence_by_window(self, model: nn.Module, progress: Progress = SILENT) -> list[float]:
        """The same for each window, mean over its positions."""
        structure, states = self._run(model, progress)
        return self.distribution(model, structure).divergences_by_window(states)

    def _run(self, model: nn.Module, progress: Progress) -> tuple[ModelStructure, list[Tensor]]:
        """The blocks of `model`, and what leaves the last of them."""
        structure = found_again(model, self.structure)
        batches = self.windows.batches(self.batch_size)
        return structure, final_states(model, structure, batches, self.device, progress)
