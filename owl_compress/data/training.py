"""Windows to train on, and others of the same text that are held apart from them."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from owl_compress.data.text import Chats, Text
from owl_compress.data.tokens import Bos
from owl_compress.data.windows import (
    TokenWindows,
    TooShortError,
    evaluation_windows,
    sample_windows,
    token_ids_sha256,
)
from owl_compress.errors import RequestError
from owl_compress.progress import SILENT, Progress

_MOST_APART = 0.1
"""Share of a short text that is held apart at most, but for one window."""


@dataclass(frozen=True)
class TrainingWindows:
    """Windows to train on, and those held apart; None where none were asked for."""

    training: TokenWindows
    apart: TokenWindows | None


def training_windows(
    tokenizer: Any,
    text: Text | Chats,
    *,
    samples: int,
    apart: int,
    seq_len: int,
    seed: int,
    bos: Bos,
    progress: Progress = SILENT,
) -> TrainingWindows:
    """`samples` windows of `text` and `apart` others, in random order; none overlaps another.

    A text that has fewer is cut into consecutive windows, all of it: one who trains for longer sees them
    again.

    Raises:
        RequestError: not even one window to train on, or a number out of range.
    """
    options: dict[str, Any] = {"seq_len": seq_len, "bos": bos, "progress": progress}
    try:
        found = sample_windows(tokenizer, text, samples=samples + apart, seed=seed, **options)
    except TooShortError:
        found = _shuffled(evaluation_windows(tokenizer, text, **options), seed)
        apart = min(apart, max(1, math.floor(_MOST_APART * len(found)))) if apart else 0
    if len(found) <= apart:
        raise RequestError(
            f"{text.source} is too short: {len(found)} window(s) of {seq_len} tokens leave none to train on: "
            "give more text, a smaller --seq-len, or name a text to evaluate on with --held-out"
        )
    n_training = len(found) - apart
    return TrainingWindows(found.first(n_training), found.between(n_training, len(found)) if apart else None)


def _shuffled(windows: TokenWindows, seed: int) -> TokenWindows:
    order = torch.from_numpy(np.random.default_rng(seed % 2**64).permutation(len(windows)))
    ids = windows.ids[order]
    changed = {"sampling": "random", "seed": seed, "token_ids_sha256": token_ids_sha256(ids)}
    return TokenWindows(ids, windows.record.model_copy(update=changed))
