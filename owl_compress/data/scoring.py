"""Which tokens of a window are scored, and how much text these stand for."""

from dataclasses import dataclass

import torch
from torch import Tensor

from owl_compress.data.tokens import PlacedTokens


@dataclass(frozen=True, eq=False)
class Scoring:
    """What of each window is scored; everything before it is context alone.

    Attributes:
        ranges: the tokens [first, stop) of each window that are scored, int64 [windows, 2]; first is 1 at
            least, since nothing predicts the first token of a window.
        extents: characters, and bytes of UTF-8, of the text that these stand for, int64 [windows, 2]; None
            where the tokenizer does not tell.
        stride: tokens from the start of a window to that of the next; None where windows do not overlap.
        protocol: what the whole of this is known as; None if it has no name.
    """

    ranges: Tensor
    extents: Tensor | None = None
    stride: int | None = None
    protocol: str | None = None

    @classmethod
    def of_whole_windows(cls, n_windows: int, seq_len: int) -> "Scoring":
        """All tokens but the first of each window."""
        return cls(torch.tensor([1, seq_len]).expand(n_windows, 2))

    @property
    def n_tokens(self) -> int:
        """Tokens that are scored, over all windows."""
        return int((self.ranges[:, 1] - self.ranges[:, 0]).sum())

    @property
    def n_characters(self) -> int | None:
        """Characters of the text that they stand for."""
        return None if self.extents is None else int(self.extents[:, 0].sum())

    @property
    def n_bytes(self) -> int | None:
        """The same in bytes of UTF-8."""
        return None if self.extents is None else int(self.extents[:, 1].sum())

    def between(self, start: int, stop: int) -> "Scoring":
        """That of the windows [start, stop) alone."""
        extents = None if self.extents is None else self.extents[start:stop]
        return Scoring(self.ranges[start:stop], extents, self.stride, self.protocol)


@dataclass(frozen=True)
class Course:
    """Windows over a text of `n_tokens`, each `step` tokens behind the one before it.

    Attributes:
        n_tokens: of the text.
        payload: tokens of the text in a window; a BOS token may stand in front of them.
        seq_len: tokens of a window.
        stride: see `Scoring`; `step` is the payload where windows do not overlap.
    """

    n_tokens: int
    payload: int
    seq_len: int
    stride: int | None

    @property
    def step(self) -> int:
        """Tokens of the text from the start of a window to that of the next."""
        return self.stride or self.payload

    @property
    def n_windows(self) -> int:
        """Whole windows, and for windows that overlap one that the text ends in."""
        behind = self.n_tokens - self.payload  # tokens that the first window leaves
        if behind < 0:
            return 0
        return 1 + (behind // self.step if self.stride is None else -(-behind // self.step))

    def windows(self, ids: Tensor, n_windows: int) -> Tensor:
        """The first windows over `ids` [n_tokens], [n_windows, payload].

        The last of overlapping windows may reach beyond the text. The last token is repeated there: it comes
        behind all that is scored, where no causal model looks.
        """
        missing = (n_windows - 1) * self.step + self.payload - self.n_tokens
        padded = torch.cat([ids, ids[-1:].expand(max(missing, 0))])
        return padded.unfold(0, self.payload, self.step)[:n_windows]

    def scoring(self, placed: PlacedTokens, text: str, n_windows: int, protocol: str | None) -> Scoring:
        """What is scored: of the first window all that can be, of the others what is new in them."""
        front = self.seq_len - self.payload
        runs: list[tuple[int, int]] = []  # of tokens of the text
        for window in range(n_windows):
            begin = window * self.step
            stop = min(begin + self.payload, self.n_tokens)
            is_new = self.stride is None or window == 0
            runs.append((begin + 1 - front if is_new else begin + self.payload - self.step, stop))
        begins = torch.arange(n_windows)[:, None] * self.step
        ranges = torch.tensor(runs, dtype=torch.int64).reshape(-1, 2) - begins + front
        return Scoring(ranges, placed.extents(text, runs), self.stride, protocol)
