"""Token windows: the fixed-length pieces of text that a model is measured, calibrated and evaluated on."""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from owl_compress.arguments import checked
from owl_compress.data.drawing import Draw
from owl_compress.data.scoring import Course, Scoring
from owl_compress.data.text import Chats, Purpose, Text, load_text
from owl_compress.data.tokens import Bos, read_placed_tokens, read_tokens
from owl_compress.data.window_checks import (
    check_choice,
    check_max_windows,
    check_samples,
    check_seq_len,
    check_stride,
    check_window,
)
from owl_compress.documents.protocols import with_protocol
from owl_compress.documents.provenance import CalibrationRecord
from owl_compress.documents.recipe_fields import DEFAULT_SAMPLES
from owl_compress.errors import RequestError
from owl_compress.progress import SILENT, Progress

Sampling = Literal["first", "random"]


@checked
@dataclass(frozen=True)
class CalibrationOptions:
    """Which windows of which text to calibrate on: what `sample_windows` takes, refused at birth.

    `source` is a path, a named set, or "builtin". A `seq_len` of None is the default of the model, a `bos` of
    "auto" that of its family.
    """

    source: str
    samples: int = DEFAULT_SAMPLES
    seq_len: int | None = None
    sampling: Sampling = "random"
    seed: int = 0
    bos: Bos | Literal["auto"] = "auto"
    text_field: str = "text"
    chat_template: bool = False

    def __post_init__(self) -> None:
        check_choice("sampling", self.sampling, get_args(Sampling))
        check_choice("bos", self.bos, ("auto", *get_args(Bos)))
        check_samples(self.samples, self.seed)
        check_seq_len(self.seq_len)


@checked
@dataclass(frozen=True)
class EvaluationOptions:
    """Which windows of which text to evaluate on: consecutive ones, the first `max_windows` of them.

    With a `stride` windows overlap, and only what is new in each is scored; a `protocol` decides what is left
    open, and refuses what it does not allow (`owl_compress.documents.protocols`).
    """

    source: str
    seq_len: int | None = None
    bos: Bos | Literal["auto"] = "auto"
    max_windows: int | None = None
    text_field: str = "text"
    chat_template: bool = False
    stride: int | None = None
    protocol: str | None = None

    def __post_init__(self) -> None:
        check_choice("bos", self.bos, ("auto", *get_args(Bos)))
        check_max_windows(self.max_windows)
        check_seq_len(self.seq_len)
        check_stride(self.stride, self.seq_len)
        given = {**vars(self), "data": self.source}
        try:
            settled = with_protocol({name: value for name, value in given.items() if name != "source"})
        except ValueError as error:
            raise RequestError(str(error)) from error
        for name in ("seq_len", "bos"):
            object.__setattr__(self, name, settled[name])


def read_texts(
    calibration: CalibrationOptions | None = None, evaluation: EvaluationOptions | None = None
) -> tuple[Text | Chats | None, Text | Chats | None]:
    """The texts that these options name; None for those that are not asked for.

    Needs no model, so that whatever is wrong with a text can be told before one is loaded.

    Raises:
        RequestError: see `load_text`; or a chat template is asked for, and no text holds conversations.
    """
    texts = _read(calibration, "calibration"), _read(evaluation, "evaluation")
    given = [text for text in texts if text is not None]
    wants_chats = any(options.chat_template for options in (calibration, evaluation) if options)
    if wants_chats and given and not any(isinstance(text, Chats) for text in given):
        names = " and ".join(dict.fromkeys(text.source for text in given))
        raise RequestError(
            f"--chat-template is for conversations, and {names} holds none: drop it, or give .jsonl with a "
            "field 'messages'"
        )
    return texts


def _read(options: CalibrationOptions | EvaluationOptions | None, purpose: Purpose) -> Text | Chats | None:
    if options is None:
        return None
    return load_text(
        options.source,
        text_field=options.text_field,
        purpose=purpose,
        chat_template=options.chat_template,
    )


@dataclass(frozen=True, eq=False)
class TokenWindows:
    """Windows of token ids, int64 [windows, seq_len] on the host, and the record of where they come from.

    `scoring` says which tokens are scored where these are evaluated on; by default all but the first of each.
    """

    ids: Tensor
    record: CalibrationRecord
    scoring: Scoring = None  # type: ignore[assignment]  # filled in below

    def __post_init__(self) -> None:
        if self.scoring is None:
            object.__setattr__(self, "scoring", Scoring.of_whole_windows(*self.ids.shape))
        recorded = [self.record.sequences, self.record.seq_len]
        if self.ids.dtype != torch.int64 or list(self.ids.shape) != recorded:
            raise ValueError(
                f"token ids must be int64 {recorded} as recorded, got {self.ids.dtype} {list(self.ids.shape)}"
            )

    def __len__(self) -> int:
        return self.record.sequences

    def batches(self, batch_size: int) -> list[Tensor]:
        """Views [<= batch_size, seq_len] of the ids, in order; only the last may be smaller."""
        check_batch_size(batch_size)
        return [self.ids[start : start + batch_size] for start in range(0, len(self), batch_size)]

    def first(self, samples: int) -> "TokenWindows":
        """The first `samples` windows, or all of them if there are fewer; a random sample stays one."""
        return self.between(0, samples)

    def between(self, start: int, stop: int) -> "TokenWindows":
        """The windows [start, stop), or as many of them as there are."""
        ids = self.ids[start:stop]
        record = self.record.model_copy(
            update={"sequences": len(ids), "token_ids_sha256": token_ids_sha256(ids)}
        )
        return TokenWindows(ids, record, self.scoring.between(start, stop))


def sample_windows(
    tokenizer: Any,
    text: Text | Chats,
    *,
    samples: int = DEFAULT_SAMPLES,
    seq_len: int,
    sampling: Sampling = "random",
    seed: int = 0,
    bos: Bos = "every",
    progress: Progress = SILENT,
) -> TokenWindows:
    """Cut `samples` windows of `seq_len` tokens out of `text`.

    The joined text is tokenised as far as it is needed; conversations are written out first. `bos` is `first`
    (exactly the ids that the tokenizer gives by itself, so a BOS once at the start if that is its convention:
    what the published tables did), `never` (no special tokens) or `every` (the BOS in front of each window,
    followed by seq_len - 1 tokens of the text).

    `sampling` is `first` (consecutive windows from the start) or `random`: windows at random places that
    never overlap, all arrangements equally likely, in random order, so that the first k of them are a random
    sample too. The published scripts draw each start independently, so that windows may overlap and repeat;
    using no token twice is the same for long texts, and a short one is refused instead of counted double.
    Texts that are sampled by document (C4) follow the published protocol: random documents of more than a
    window, a random window inside each; no document is drawn twice (the scripts might). A long text (see
    `Draw.wants_sections`) is not tokenised whole for a few windows: random sections of it are, with a random
    window inside each, and the record says so.

    Raises:
        RequestError: too little text, no BOS token, or a number out of range.
    """
    check_choice("sampling", sampling, get_args(Sampling))
    check_window(seq_len, bos)
    check_samples(samples, seed)
    prefix = _window_prefix(tokenizer, bos)
    payload = seq_len - len(prefix)
    text = text.written_for(tokenizer, progress)
    draw = Draw(tokenizer, samples, payload, bos, np.random.default_rng(seed), progress)
    pieces, by_section = None, False
    if sampling == "random" and text.by_document:
        pieces = draw.from_documents(text)
    elif sampling == "random" and draw.wants_sections(len(text.joined)):
        pieces = draw.from_sections(text.joined)
        by_section = pieces is not None
    if pieces is None:
        n_needed = samples * payload if sampling == "first" else None
        ids = read_tokens(tokenizer, text.joined, bos, n_needed, progress)
        _check_enough(text, len(ids), samples, seq_len, payload)
        if sampling == "first":
            pieces = ids[: samples * payload].reshape(samples, payload)
        else:
            pieces = draw.from_whole(ids)
    return _token_windows(prefix, pieces, text, sampling=sampling, seed=seed, bos=bos, by_section=by_section)


def evaluation_windows(
    tokenizer: Any,
    text: Text | Chats,
    *,
    seq_len: int,
    bos: Bos,
    max_windows: int | None = None,
    stride: int | None = None,
    protocol: str | None = None,
    progress: Progress = SILENT,
) -> TokenWindows:
    """Cut the whole text into consecutive windows that do not overlap; the incomplete last one is dropped.

    With a `stride` of S tokens windows overlap: each begins S tokens behind the one before it, and only its
    last S tokens are scored, of the first one all that can be. The last window is then cut short by the end
    of the text, so that every token but the first is scored once (with a BOS in front, the first too), and
    all but those of the first window with seq_len - S tokens before them at least: "strided windows" on the
    page of Hugging Face's documentation on the perplexity of models of fixed length.

    `max_windows` keeps the first ones only, and no more is tokenised. BOS and conversations as in
    `sample_windows`; `protocol` is the name under which this is published.

    Raises:
        RequestError: the text is shorter than one window, no BOS token, or a number out of range.
    """
    check_window(seq_len, bos)
    check_max_windows(max_windows)
    check_stride(stride, seq_len)
    prefix = _window_prefix(tokenizer, bos)
    payload = seq_len - len(prefix)
    text = text.written_for(tokenizer, progress)
    n_needed = None if max_windows is None else payload + (max_windows - 1) * (stride or payload)
    placed = read_placed_tokens(tokenizer, text.joined, bos, n_needed, progress)
    course = Course(len(placed.ids), payload, seq_len, stride)
    n_windows = min(course.n_windows, max_windows or course.n_windows)
    _check_enough(text, len(placed.ids), 1, seq_len, payload)
    scoring = course.scoring(placed, text.joined, n_windows, protocol)
    pieces = course.windows(placed.ids, n_windows)
    found = _token_windows(prefix, pieces, text, sampling="first", seed=0, bos=bos)
    return TokenWindows(found.ids, found.record, scoring)


def resolve_bos(requested: str, family_default: Bos) -> Bos:
    """The BOS placement to use: `requested`, where `auto` is what the model's family needs.

    Raises:
        RequestError: unknown name.
    """
    if requested == "auto":
        return family_default
    check_choice("bos", requested, ("auto", *get_args(Bos)))
    chosen: Bos = requested  # type: ignore[assignment]  # checked the line before
    return chosen


class TooShortError(RequestError):
    """A text that holds no more than `largest` windows: `with_options` says so of options by other names."""

    def __init__(
        self, problem: str, largest: int, samples: str = "samples", seq_len: str = "seq-len"
    ) -> None:
        remedy = f"--{samples} {largest} at most" if largest else f"a smaller --{seq_len}"
        super().__init__(f"{problem}: give more text, or {remedy}")
        self._problem, self._largest = problem, largest

    def with_options(self, samples: str, seq_len: str) -> "TooShortError":
        """The same, with the remedy in the options that set the windows."""
        return TooShortError(self._problem, self._largest, samples, seq_len)


def token_ids_sha256(ids: Tensor) -> str:
    """sha256 of the ids as int64, little-endian, row by row."""
    return hashlib.sha256(ids.cpu().numpy().astype("<i8").tobytes()).hexdigest()


def check_batch_size(batch_size: int) -> None:
    """Refuse a number of sequences that is none.

    Raises:
        RequestError: below 1.
    """
    if batch_size < 1:
        raise RequestError(f"batch size {batch_size} is below 1: set --batch-size to at least 1")


def _check_enough(text: Text, n_tokens: int, samples: int, seq_len: int, payload: int) -> None:
    needed = samples * payload
    if n_tokens >= needed:
        return
    windows = "one window" if samples == 1 else f"{samples} windows"
    raise TooShortError(
        f"{text.source} is too short: it has {n_tokens} tokens and {windows} of {seq_len} need {needed}",
        n_tokens // payload,
    )


def _window_prefix(tokenizer: Any, bos: Bos) -> list[int]:
    """The ids that stand in front of every window: the BOS or nothing."""
    if bos != "every":
        return []
    if tokenizer.bos_token_id is None:
        raise RequestError(
            "this model's tokenizer has no BOS token to put in front of every window: use --bos first"
        )
    return [int(tokenizer.bos_token_id)]


def _token_windows(
    prefix: list[int],
    pieces: Tensor,
    text: Text,
    *,
    sampling: Sampling,
    seed: int,
    bos: Bos,
    by_section: bool = False,
) -> TokenWindows:
    """From prefix [0 or 1], pieces [windows, payload] -> ids [windows, seq_len]."""
    front = torch.tensor(prefix, dtype=torch.int64).expand(len(pieces), len(prefix))
    ids = torch.cat([front, pieces], dim=1)
    record = CalibrationRecord(
        source=text.source,
        token_ids_sha256=token_ids_sha256(ids),
        sequences=ids.shape[0],
        seq_len=ids.shape[1],
        sampling=sampling,
        seed=seed,
        bos=bos,
        drawn_from="sections" if by_section else None,
        chat_template=True if text.chat_template else None,
    )
    return TokenWindows(ids, record)
