"""The windows of a model: calibrated on, held apart from these, and evaluated on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from owl_compress.arguments import checked
from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.data.apart import windows_apart
from owl_compress.data.text import Chats, Text
from owl_compress.data.windows import (
    CalibrationOptions,
    EvaluationOptions,
    TokenWindows,
    evaluation_windows,
    read_texts,
    resolve_bos,
    sample_windows,
)
from owl_compress.models.limits import check_vocabulary, resolve_seq_len
from owl_compress.models.structure import ModelStructure, find_structure
from owl_compress.pipeline.profile_settings import (
    DEFAULT_DAMAGE_LEN,
    DEFAULT_DAMAGE_SAMPLES,
)
from owl_compress.progress import SILENT, Progress


@checked
def calibrate(loaded: LoadedModel, source: Path | str, **options: Any) -> TokenWindows:
    """Token windows to measure or compress `loaded` with, cut out of the text `source`.

    Args:
        loaded: the model, whose tokenizer and maximum length count.
        source: a path, a named set, or "builtin"; see `owl_compress.data.text.load_text`.
        options: those of `owl_compress.data.windows.CalibrationOptions`: samples, seq_len, sampling, seed,
            bos, text_field, chat_template.

    Returns:
        Windows of shape [samples, seq_len].

    Raises:
        RequestError: too little text, or a value that cannot be meant.
    """
    return calibration_windows(
        loaded, find_structure(loaded.model), CalibrationOptions(str(source), **options)
    )


def calibration_windows(
    loaded: LoadedModel,
    structure: ModelStructure,
    options: CalibrationOptions,
    text: Text | Chats | None = None,
    progress: Progress = SILENT,
) -> TokenWindows:
    """The windows that `options` ask for, for a model whose blocks are known; a `text` is read already.

    Raises:
        RequestError: see `calibrate`.
    """
    text = text or read_texts(options)[0]
    if text is None:
        raise TypeError("options of calibration name a text")
    windows = sample_windows(
        loaded.tokenizer,
        text,
        samples=options.samples,
        seq_len=resolve_seq_len(options.seq_len, loaded.model.config),
        sampling=options.sampling,
        seed=options.seed,
        bos=resolve_bos(options.bos, structure.bos),
        progress=progress,
    )
    check_vocabulary(loaded.model, windows.ids)
    return windows


@checked
def hold_apart(
    loaded: LoadedModel,
    source: Path | str,
    taken: Sequence[TokenWindows],
    *,
    samples: int = DEFAULT_DAMAGE_SAMPLES,
    seq_len: int = DEFAULT_DAMAGE_LEN,
    seed: int = 0,
    bos: str = "auto",
    text_field: str = "text",
) -> TokenWindows:
    """Random windows of the text `source`, shape [samples, seq_len], that share nothing with those `taken`.

    What damage is measured on, held apart from what a backend sees: `profile` refuses windows that overlap.

    Raises:
        RequestError: too little text beside those windows, or a value that cannot be meant.
    """
    options = CalibrationOptions(str(source), samples, seq_len, "random", seed, "auto", text_field)
    text = read_texts(options)[0]
    if text is None:
        raise TypeError("options of calibration name a text")
    structure, length = find_structure(loaded.model), resolve_seq_len(seq_len, loaded.model.config)
    return held_apart(loaded, structure, text, taken, samples=samples, seq_len=length, seed=seed, bos=bos)


def held_apart(
    loaded: LoadedModel,
    structure: ModelStructure,
    text: Text | Chats,
    taken: Sequence[TokenWindows],
    *,
    samples: int,
    seq_len: int,
    seed: int,
    bos: str,
    progress: Progress = SILENT,
) -> TokenWindows:
    """Windows of a text that is read already, [samples, seq_len], that share nothing with those `taken`.

    Raises:
        RequestError: see `hold_apart`.
    """
    windows = windows_apart(
        loaded.tokenizer,
        text,
        taken,
        samples=samples,
        seq_len=seq_len,
        seed=seed,
        bos=resolve_bos(bos, structure.bos),
        progress=progress,
    )
    check_vocabulary(loaded.model, windows.ids)
    return windows


@checked
def hold_out(loaded: LoadedModel, source: Path | str, **options: Any) -> TokenWindows:
    """Token windows to evaluate `loaded` on: the whole text `source`, cut into consecutive windows.

    `options` are those of `owl_compress.data.windows.EvaluationOptions`: seq_len, bos, max_windows, stride,
    protocol, text_field, chat_template.
    """
    return held_out_windows(loaded, find_structure(loaded.model), EvaluationOptions(str(source), **options))


def held_out_windows(
    loaded: LoadedModel,
    structure: ModelStructure,
    options: EvaluationOptions,
    text: Text | Chats | None = None,
    progress: Progress = SILENT,
) -> TokenWindows:
    """The windows that `options` ask for, for a model whose blocks are known; a `text` is read already.

    Raises:
        RequestError: too little text, or a value that cannot be meant.
    """
    text = text or read_texts(evaluation=options)[1]
    if text is None:
        raise TypeError("options of evaluation name a text")
    windows = evaluation_windows(
        loaded.tokenizer,
        text,
        seq_len=resolve_seq_len(options.seq_len, loaded.model.config),
        bos=resolve_bos(options.bos, structure.bos),
        max_windows=options.max_windows,
        stride=options.stride,
        protocol=options.protocol,
        progress=progress,
    )
    check_vocabulary(loaded.model, windows.ids)
    return windows
