"""Numbers and words that windows are cut by: those that cannot be meant are refused."""

from typing import get_args

from owl_compress.data.tokens import Bos
from owl_compress.errors import RequestError, nearest


def check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is none of the `choices`."""
    if value not in choices:
        raise RequestError(f"unknown {what} {value!r}: {nearest(value, choices)}")


def check_samples(samples: int, seed: int) -> None:
    """Refuse a number of windows, or a seed, that cannot be meant."""
    if samples < 1:
        raise RequestError(f"{samples} samples are too few: set --samples to at least 1")
    if seed < 0:
        raise RequestError(f"seed {seed} is negative: set --seed to 0 or more")


def check_max_windows(max_windows: int | None) -> None:
    """Refuse a number of windows that is none."""
    if max_windows is not None and max_windows < 1:
        raise RequestError(f"{max_windows} windows are too few: set --max-windows to at least 1")


def check_stride(stride: int | None, seq_len: int | None = None) -> None:
    """Refuse windows that go nowhere, or of which `seq_len` tokens do not reach the next one's."""
    if stride is None:
        return
    if stride < 1:
        raise RequestError(f"a stride of {stride} tokens goes nowhere: set --stride to at least 1")
    if seq_len is not None and stride >= seq_len:
        raise RequestError(
            f"stride {stride} is not below the {seq_len} tokens of a window, so that not every token would "
            f"be scored: set --stride to {seq_len - 1} at most, or drop it for windows that do not overlap"
        )


def check_window(seq_len: int, bos: str) -> None:
    """Refuse windows of a form that cannot be meant."""
    check_choice("bos", bos, get_args(Bos))
    check_seq_len(seq_len)


def check_seq_len(seq_len: int | None) -> None:
    """Refuse windows in which nothing is predicted."""
    if seq_len is not None and seq_len < 2:
        raise RequestError(f"sequence length {seq_len} is below 2: set --seq-len to at least 2")
