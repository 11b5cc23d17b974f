"""Windows held apart from others of a text: what is judged by them was not chosen by them."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from owl_compress.data.text import Chats, Text
from owl_compress.data.tokens import Bos
from owl_compress.data.windows import TokenWindows, TooShortError, sample_windows, token_ids_sha256
from owl_compress.errors import RequestError
from owl_compress.progress import SILENT, Progress

_RUN = 32
"""Tokens in a row that two windows share only where they overlap, or repeat each other word for word."""

_MOST_DRAWS = 5


def windows_apart(
    tokenizer: Any,
    text: Text | Chats,
    taken: Sequence[TokenWindows],
    *,
    samples: int,
    seq_len: int,
    seed: int,
    bos: Bos,
    progress: Progress = SILENT,
) -> TokenWindows:
    """`samples` random windows of `text`, shape [samples, seq_len], that share nothing with those `taken`.

    More are drawn than are wanted, those that overlap are dropped, and the first of the others are kept; they
    lie anywhere in the text, also where the taken ones are from its start.

    Raises:
        RequestError: what is left of the text is too short, or a number out of range.
    """
    run = min(_RUN, seq_len)
    known = _runs((window for windows in taken for window in windows.ids), run)
    drawn = 2 * samples
    apart: list[Tensor] = []
    for _ in range(_MOST_DRAWS):
        try:
            found = sample_windows(
                tokenizer, text, samples=drawn, seq_len=seq_len, seed=seed, bos=bos, progress=progress
            )
        except RequestError:
            if apart:
                break
            try:
                found = sample_windows(tokenizer, text, samples=samples, seq_len=seq_len, seed=seed, bos=bos)
            except TooShortError as short:  # not even one draw: the text itself
                raise short.with_options("damage-samples", "damage-len") from None
        apart = [window for window in found.ids if known.isdisjoint(_runs([window], run))]
        if len(apart) >= samples:
            ids = torch.stack(apart[:samples])
            changed = {"sequences": samples, "token_ids_sha256": token_ids_sha256(ids)}
            return TokenWindows(ids, found.record.model_copy(update=changed))
        drawn = 2 * len(found)
    raise RequestError(
        f"{text.source} has too little text beside the windows that statistics are taken on: {len(apart)} of "
        f"{samples} windows of {seq_len} tokens lie apart from them; give more text, or fewer --samples"
    )


def check_apart(taken: TokenWindows | None, windows: TokenWindows) -> None:
    """Refuse windows to judge by that overlap those that statistics are taken on.

    Raises:
        RequestError: a run of tokens is in both.
    """
    if taken is None:
        return
    run = min(_RUN, windows.record.seq_len)
    known = _runs(taken.ids, run)
    for number, window in enumerate(windows.ids):
        if not known.isdisjoint(_runs([window], run)):
            raise RequestError(
                f"window {number} of {windows.record.source}, which damage is measured on, overlaps the "
                "windows that statistics are taken on: hold them apart, as windows_apart does"
            )


def _runs(windows: Iterable[Tensor], run: int) -> set[bytes]:
    """Every `run` tokens in a row of each of the windows; a shorter window is one run by itself."""
    found: set[bytes] = set()
    for window in windows:
        data = window.numpy().astype("<i8").tobytes()
        length = 8 * min(run, len(window))
        found.update(data[start : start + length] for start in range(0, len(data) - length + 1, 8))
    return found
