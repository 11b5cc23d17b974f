"""Token ids of long texts: piece by piece, as many as are needed, and the same as of the text in one go."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from owl_compress.progress import SILENT, Progress

Bos = Literal["every", "first", "never"]

PIECE = 100_000
"""Characters that are tokenised at once: less than half a second."""

_OVERLAP = 4_000
_AGREEING = 16
"""Tokens on either side of a seam in which both pieces must agree."""


@dataclass(frozen=True, eq=False)
class PlacedTokens:
    """Token ids [tokens], int64, and where each ends in the text.

    `ends` [tokens] counts characters from the start of the text and never falls: a token stands for what lies
    between the end of the one before it and its own. So every character belongs to one token: what a
    tokenizer leaves out between two of them (a space, often) to the second, and a character that several
    tokens spell byte by byte to the first of these. Special tokens stand for nothing. None where the
    tokenizer does not tell.
    """

    ids: Tensor
    ends: Tensor | None

    def extents(self, text: str, runs: Iterable[tuple[int, int]]) -> Tensor | None:
        """Characters and bytes of UTF-8 that runs of tokens [start, stop) of `text` stand for, [runs, 2]."""
        if self.ends is None:
            return None
        begins = [0, *self.ends.tolist()]  # of each token, and the end of the last
        pieces = [text[begins[start] : begins[stop]] for start, stop in runs]
        return torch.tensor([(len(piece), len(piece.encode())) for piece in pieces], dtype=torch.int64)


def read_tokens(
    tokenizer: Any, text: str, bos: Bos, n_needed: int | None = None, progress: Progress = SILENT
) -> Tensor:
    """The first `n_needed` token ids of `text`, int64, or some more; all of them if there are fewer.

    Special tokens only where `bos` is `first`. The ids are those that the tokenizer gives of the whole text:
    see `_runs`.
    """
    return read_placed_tokens(tokenizer, text, bos, n_needed, progress).ids


def read_placed_tokens(
    tokenizer: Any, text: str, bos: Bos, n_needed: int | None = None, progress: Progress = SILENT
) -> PlacedTokens:
    """The same token ids, with the place of each in the text."""
    runs = _runs(tokenizer, text, bos)
    parts = [next(runs)]
    n_runs = math.ceil((len(text) - _OVERLAP) / PIECE) - 1
    if n_needed is not None:
        n_runs = min(n_runs, math.ceil((n_needed - len(parts[0])) / max(len(parts[0]), 1)))
    if n_runs > 0:  # so many as it looks like; what is missing then comes without a bar
        parts += progress.track(islice(runs, n_runs), total=n_runs, what="tokenising")
    n_read = sum(map(len, parts))
    while n_needed is None or n_read < n_needed:
        run = next(runs, None)
        if run is None:
            break
        parts.append(run)
        n_read += len(run)
    ids = np.concatenate([part.ids for part in parts])
    if not _tells_places(tokenizer):
        return PlacedTokens(torch.from_numpy(ids), None)
    ends = np.maximum.accumulate(np.concatenate([part.ends for part in parts]))
    return PlacedTokens(torch.from_numpy(ids), torch.from_numpy(ends))


def tokenise(tokenizer: Any, text: str, bos: Bos) -> Tensor:
    """Token ids [tokens], int64, of all `text` in one go; special tokens only where `bos` is `first`."""
    return torch.from_numpy(_encoded(tokenizer, text, bos, 0).ids)


@dataclass(frozen=True)
class _Encoded:
    """Token ids [tokens] of a piece of text, and where each begins and ends in the whole text."""

    ids: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, tokens: slice) -> "_Encoded":
        return _Encoded(self.ids[tokens], self.starts[tokens], self.ends[tokens])

    def index_at(self, place: int) -> int:
        """Index of the first token that begins at `place` or behind it."""
        return int(np.searchsorted(self.starts, place))


def _runs(tokenizer: Any, text: str, bos: Bos) -> Iterator[_Encoded]:
    """Runs of tokens that, one after the other, are those of the whole `text`.

    Pieces overlap, and are joined where both cut the text alike, token for token, for `_AGREEING` tokens on
    either side: what a tokenizer does there no longer depends on where a piece began or ends. If they never
    do (a text without any break), or the tokenizer does not tell where its tokens lie, the rest is tokenised
    in one go.
    """
    if len(text) <= PIECE + _OVERLAP or not _tells_places(tokenizer):
        yield _encoded(tokenizer, text, bos, 0)
        return
    begin, done = 0, 0
    piece = _encoded(tokenizer, text[: PIECE + _OVERLAP], bos, 0)
    while begin + PIECE + _OVERLAP < len(text):
        behind = begin + PIECE
        following = _encoded(tokenizer, text[behind : behind + PIECE + _OVERLAP], bos, behind)
        seam = _seam(piece, following, behind)
        if seam is None:
            rest = _encoded(tokenizer, text[begin:], bos, begin)
            yield rest[done:]
            return
        yield piece[done : seam[0]]
        begin, piece, done = behind, following, seam[1]
    yield piece[done:]


def _tells_places(tokenizer: Any) -> bool:
    """Whether the tokenizer says which characters a token stands for: those written in Python do not."""
    return bool(getattr(tokenizer, "is_fast", False))


def _seam(before: _Encoded, after: _Encoded, overlap: int) -> tuple[int, int] | None:
    """Indices into two pieces of the same token, about which both agree; None if there is no such place.

    Looked for in the middle half of the characters from `overlap` on, which both pieces hold.
    """
    first, last = overlap + _OVERLAP // 4, overlap + 3 * _OVERLAP // 4
    for here in range(before.index_at(first), before.index_at(last)):
        there = after.index_at(int(before.starts[here]))
        if _agree(before, after, here, there):
            return here, there
    return None


def _agree(before: _Encoded, after: _Encoded, here: int, there: int) -> bool:
    if min(here, there, len(before.ids) - here, len(after.ids) - there) < _AGREEING:
        return False
    ours, theirs = slice(here - _AGREEING, here + _AGREEING), slice(there - _AGREEING, there + _AGREEING)
    return bool(
        np.array_equal(before.ids[ours], after.ids[theirs])
        and np.array_equal(before.starts[ours], after.starts[theirs])
    )


def _encoded(tokenizer: Any, text: str, bos: Bos, begin: int) -> _Encoded:
    """The tokens of a piece of text that begins at `begin`.

    `verbose=False` keeps the tokenizer from warning that the text is longer than the model's context: it is
    cut into windows afterwards.
    """
    tells_places = _tells_places(tokenizer)
    encoded = tokenizer(
        text,
        add_special_tokens=bos == "first",
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=tells_places,
        verbose=False,
    )
    ids = np.array(encoded["input_ids"], dtype=np.int64)
    if not tells_places:
        return _Encoded(ids, np.zeros_like(ids), np.zeros_like(ids))
    # Special tokens lie nowhere, which is told as the very beginning: places never fall.
    places = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    starts, ends = np.maximum.accumulate(places, axis=0).T + begin
    return _Encoded(ids, starts, ends)
