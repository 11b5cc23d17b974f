"""Pieces of tokens drawn at random: from the whole text, from documents, or from sections of a long text."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from owl_compress.data.text import Text
from owl_compress.data.tokens import Bos, tokenise
from owl_compress.errors import RequestError
from owl_compress.progress import SILENT, Progress

LARGEST_WHOLE = 2_000_000
"""A text of so many characters is tokenised whole before anything is drawn from it: about five seconds."""

_CHARACTERS_PER_TOKEN = 8
"""Of a section, for each token of a window: about twice what a token covers in prose."""

_CHOICE = 2
"""So many sections there must be for each one that is drawn: else most of the text is needed anyway."""

# A tokenizer puts at most a handful of tokens around a text that stand for none of its bytes.
_MAX_SPECIAL_TOKENS = 8
_GAP = re.compile(r"\s")


@dataclass(frozen=True)
class Draw:
    """What is drawn: `samples` pieces of `payload` tokens, as `generator` has it, BOS as `bos` says."""

    tokenizer: Any
    samples: int
    payload: int
    bos: Bos
    generator: np.random.Generator
    progress: Progress = SILENT

    def from_whole(self, ids: Tensor) -> Tensor:
        """From ids [tokens] -> [samples, payload]: pieces that do not overlap, all arrangements alike likely.

        In random order. Shrinking every piece to one token makes an arrangement a choice of `samples` places
        out of the rest.
        """
        places = len(ids) - self.samples * (self.payload - 1)
        chosen = np.sort(self.generator.choice(places, size=self.samples, replace=False))
        starts = chosen + np.arange(self.samples) * (self.payload - 1)
        shuffled = torch.from_numpy(self.generator.permutation(starts))
        return ids[shuffled[:, None] + torch.arange(self.payload)]

    def from_documents(self, text: Text) -> Tensor:
        """One random piece of each of `samples` random documents -> [samples, payload].

        Raises:
            RequestError: too few documents of more than `payload` tokens.
        """
        order = self.generator.permutation(len(text.documents))
        found = self._one_of_each((text.documents[index], self.bos) for index in order)
        if len(found) == self.samples:
            return torch.stack(found)
        remedy = "a smaller --seq-len"
        if found:
            remedy = f"set --samples {len(found)} at most, or {remedy}"
        raise RequestError(
            f"{text.source} is too short: {self.samples} windows need as many documents of more than "
            f"{self.payload} tokens, and {len(found)} of its {len(text.documents)} documents are: {remedy}"
        )

    def wants_sections(self, n_characters: int) -> bool:
        """Whether a text is so long that only some sections of it are worth tokenising."""
        return n_characters > LARGEST_WHOLE and n_characters // self._section >= _CHOICE * self.samples

    def from_sections(self, joined: str) -> Tensor | None:
        """One random piece of each of `samples` random sections of a text -> [samples, payload].

        Sections are of equal length and lie side by side, and none is drawn twice: pieces never overlap. Each
        starts at its first gap between words. One of too few tokens (a table of blanks) is passed over; None
        if too many are.
        """
        order = self.generator.permutation(len(joined) // self._section)
        # What stands in front of a text stands in front of its first section alone.
        other: Bos = "never" if self.bos == "first" else self.bos
        found = self._one_of_each(
            (self._section_at(joined, int(index)), self.bos if index == 0 else other) for index in order
        )
        return torch.stack(found) if len(found) == self.samples else None

    @property
    def _section(self) -> int:
        """Characters of a section."""
        return _CHARACTERS_PER_TOKEN * self.payload

    def _section_at(self, joined: str, index: int) -> str:
        section = joined[index * self._section : (index + 1) * self._section]
        gap = _GAP.search(section) if index else None
        return section[gap.start() :] if gap else section

    def _one_of_each(self, texts: Iterable[tuple[str, Bos]]) -> list[Tensor]:
        """A random piece [payload] of each of the first `samples` texts of more than `payload` tokens."""
        pieces = islice(self._pieces(texts), self.samples)
        return list(self.progress.track(pieces, total=self.samples, what="tokenising"))

    def _pieces(self, texts: Iterable[tuple[str, Bos]]) -> Iterator[Tensor]:
        for text, bos in texts:
            if len(text.encode()) + _MAX_SPECIAL_TOKENS <= self.payload:
                continue  # a token covers a byte at least: too short, and not worth tokenising
            ids = tokenise(self.tokenizer, text, bos)
            if len(ids) > self.payload:
                start = int(self.generator.integers(len(ids) - self.payload))
                yield ids[start : start + self.payload]
