"""How a GGUF turns queries and keys by position, and the same in the words of transformers.

transformers' own reader takes the base of the rotary embedding over and nothing else. What llama.cpp makes of
the keys `rope.*` and of the tensors `rope_freqs` and `rope_factors_*` follows its sources (load_hparams in
llama-model.cpp, ggml_rope_cache_init and rope_yarn in ggml-cpu/ops.cpp): the frequency of pair i is
base^(-2i/dim), divided by the file's factor for it, then by the linear factor, or mixed as YaRN says.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from owl_compress.checkpoints.gguf_file import GgufFile
from owl_compress.errors import RequestError

FREQUENCIES = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
TENSORS = (FREQUENCIES, LONG, SHORT)
KEYS = (
    "rope.freq_base", "rope.freq_base_swa", "rope.dimension_count", "rope.dimension_sections",
    "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear", "rope.scaling.original_context_length",
    "rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.finetuned",
)  # fmt: skip
"""Keys of the architecture that are taken account of here."""

_DEFAULT_BASE = 10_000.0
_BETA_FAST, _BETA_SLOW = 32.0, 1.0
# What Llama 3.1 and its successors were scaled by; a file holds the factors that came of it alone.
_LOW, _HIGH = 1.0, 4.0
_CONTEXTS = tuple(2**power for power in range(9, 20))
_CLOSE = 1e-4
"""Relative difference of two frequencies that are the same but for float32's rounding."""

Kind = Literal["none", "linear", "yarn"]


@dataclass(frozen=True)
class Rope:
    """The rotary embedding that a file describes.

    `factors` divide the frequency of each pair, up to `original` tokens, and `long_factors` beyond them; both
    are None where the file has none. `attention` is what cosine and sine are multiplied by.
    """

    base: float
    dim: int
    kind: Kind
    factor: float
    original: int
    attention: float
    beta_fast: float = _BETA_FAST
    beta_slow: float = _BETA_SLOW
    factors: tuple[float, ...] | None = None
    long_factors: tuple[float, ...] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether base and dimension say everything."""
        return self.kind == "none" and self.factors is None and math.isclose(self.attention, 1.0)


def rope_of(file: GgufFile, head_dim: int) -> Rope | None:
    """What the file says of its rotary embedding; None if it has none.

    Raises:
        RequestError: a kind that llama.cpp does not have, or numbers that cannot be meant.
    """
    if not any(file.value(key) is not None for key in KEYS) and not set(TENSORS) & set(file.tensors):
        return None
    dim = _number(file, "rope.dimension_count", head_dim)
    name = file.value("rope.scaling.type", "linear")
    if name not in {"none", "linear", "yarn", "longrope"}:
        raise _refused(file, f"rope.scaling.type {name!r} is none that is known")
    factor = _number(file, "rope.scaling.factor", _number(file, "rope.scale_linear", 1.0)) or 1.0
    kind: Kind = "yarn" if name == "yarn" else "linear" if name == "linear" and factor != 1.0 else "none"
    attention = _number(file, "rope.scaling.attn_factor", 1.0) * _number(
        file, "rope.scaling.yarn_attn_factor", 1.0
    )
    if _number(file, "rope.scaling.yarn_ext_factor", 1.0) not in {1.0, -1.0}:
        raise _refused(file, "rope.scaling.yarn_ext_factor is not 1")
    short, long = _factors(file, dim)
    if short is not None and kind == "yarn":
        raise _refused(file, "both YaRN and factors of single frequencies scale its rotary embedding")
    return Rope(
        base=_number(file, "rope.freq_base", _DEFAULT_BASE),
        dim=int(dim),
        kind=kind,
        factor=factor if kind != "none" else 1.0,
        original=int(
            _number(file, "rope.scaling.original_context_length", _number(file, "context_length", 2048))
        ),
        attention=attention * (1 + 0.1 * math.log(factor)) if kind == "yarn" and factor > 1 else attention,
        beta_fast=_number(file, "rope.scaling.yarn_beta_fast", _BETA_FAST),
        beta_slow=_number(file, "rope.scaling.yarn_beta_slow", _BETA_SLOW),
        factors=short,
        long_factors=long,
    )


def parameters_of(rope: Rope) -> dict[str, Any]:
    """`rope_parameters` of a configuration that turns as `rope` does.

    Factors that are those of Llama 3 are said in its words. All others become those of LongRoPE, which too
    divides each frequency by a factor of its own.
    """
    words: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.base}
    if rope.kind == "yarn":
        return words | {
            "rope_type": "yarn",
            "factor": rope.factor,
            "original_max_position_embeddings": rope.original,
            "attention_factor": rope.attention,
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
        }
    if rope.factors is not None:
        alike = rope.long_factors == rope.factors and rope.kind == "none" and math.isclose(rope.attention, 1)
        llama3 = _as_llama3(rope) if alike else None
        if llama3 is not None:
            return words | {"rope_type": "llama3", **llama3}
        return words | {
            "rope_type": "longrope",
            "short_factor": [rope.factor * factor for factor in rope.factors],
            "long_factor": [rope.factor * factor for factor in rope.long_factors or rope.factors],
            "factor": 1.0,
            "original_max_position_embeddings": rope.original,
            "attention_factor": rope.attention,
        }
    if rope.kind == "linear":
        return words | {"rope_type": "linear", "factor": rope.factor}
    return words


def frequencies(rope: Rope) -> np.ndarray:
    """The angle by which each pair turns from one token to the next, float64, shape [dim / 2]."""
    pairs = np.arange(0, rope.dim, 2, dtype=np.float64)
    plain: np.ndarray = rope.base ** -(pairs / rope.dim)
    if rope.kind == "yarn":
        keep = 1 - _ramp(rope)
        mixed: np.ndarray = plain / rope.factor * (1 - keep) + plain * keep
        return mixed
    if rope.factors is not None:
        plain = plain / np.asarray(rope.factors)
    scaled: np.ndarray = plain / rope.factor
    return scaled


def check_turned_by(model: nn.Module, rope: Rope, file: GgufFile) -> None:
    """Refuse a model of transformers whose rotary embedding is not that of the file.

    Raises:
        RequestError: see above.
    """
    wanted, found = frequencies(rope), list(_embeddings(model))
    if not found and not rope.is_plain:
        raise _refused(file, f"{type(model).__name__} of transformers cannot scale its rotary embedding")
    for frequency, attention in found:
        has = frequency.detach().double().cpu().numpy()
        if has.shape != wanted.shape or not np.allclose(has, wanted, rtol=_CLOSE, atol=0):
            raise _refused(file, f"{type(model).__name__} of transformers cannot turn by its angles")
        if not math.isclose(attention, rope.attention, rel_tol=_CLOSE):
            raise _refused(
                file, f"{type(model).__name__} of transformers cannot scale by its attention factor"
            )


def _embeddings(model: nn.Module) -> Iterator[tuple[Tensor, float]]:
    """Frequencies and attention factor of every rotary embedding; of full attention, if there are two."""
    for module in model.modules():
        for prefix in ("", "full_attention_"):
            frequency = getattr(module, f"{prefix}inv_freq", None)
            if isinstance(frequency, Tensor):
                yield frequency, float(getattr(module, f"{prefix}attention_scaling", 1.0))


def _factors(file: GgufFile, dim: float) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """The factors up to the original context, and beyond it: one tensor serves for both if it is alone."""
    found = {name: file.vector(name) for name in TENSORS}
    for name, vector in found.items():
        if vector is None:
            continue
        if len(vector) != dim // 2 or not np.isfinite(vector).all() or (vector <= 0).any():
            raise _refused(file, f"tensor {name!r} is not {int(dim // 2)} factors above zero")
    single = found[FREQUENCIES]
    short, long = (found[SHORT], found[LONG]) if single is None else (single, single)
    if (short is None) != (long is None):
        raise _refused(file, f"it has one of {SHORT} and {LONG} only")
    if short is None or long is None or ((short == 1).all() and (long == 1).all()):
        return None, None
    return tuple(map(float, short)), tuple(map(float, long))


def _as_llama3(rope: Rope) -> dict[str, float] | None:
    """The parameters of Llama 3's scaling that give the factors of `rope`; None if none do."""
    wanted = np.asarray(rope.factors)
    factor = float(wanted.max())
    wavelengths = 2 * math.pi * rope.base ** (np.arange(0, rope.dim, 2) / rope.dim)
    if factor <= 1:
        return None
    for original in _CONTEXTS:
        smooth = ((original / wavelengths - _LOW) / (_HIGH - _LOW)).clip(0, 1)
        if np.allclose(wanted, 1 / ((1 - smooth) / factor + smooth), rtol=1e-5, atol=0):
            return {
                "factor": factor,
                "low_freq_factor": _LOW,
                "high_freq_factor": _HIGH,
                "original_max_position_embeddings": original,
            }
    return None


def _ramp(rope: Rope) -> np.ndarray:
    """How much of YaRN's interpolation each pair gets, from 0 to 1."""

    def pair(rotations: float) -> float:
        turns = rope.original / (rotations * 2 * math.pi)
        return rope.dim * math.log(turns) / (2 * math.log(rope.base))

    low = max(math.floor(pair(rope.beta_fast)), 0)
    high = min(math.ceil(pair(rope.beta_slow)), rope.dim - 1)
    ramp: np.ndarray = (np.arange(rope.dim // 2) - low) / max(0.001, high - low)
    return ramp.clip(0, 1)


def _number(file: GgufFile, key: str, default: float) -> float:
    found = file.value(key, default)
    if isinstance(found, Sequence | bool) or not math.isfinite(found) or found < 0:
        raise _refused(file, f"{file.architecture}.{key} is {found!r}")
    return float(found)


def _refused(file: GgufFile, reason: str) -> RequestError:
    return RequestError(
        f"{file.path}: {reason}: it cannot be loaded as the model that it is; start from the checkpoint that "
        "it was converted from"
    )


def merged(existing: Mapping[str, Any], rope: Rope, head_dim: int, file: GgufFile) -> dict[str, Any]:
    """`rope_parameters` as a configuration has them, with those of the file.

    Raises:
        RequestError: only a part of each head is turned, which this architecture of transformers cannot.
    """
    ours = parameters_of(rope)
    if rope.dim != head_dim:
        if "partial_rotary_factor" not in existing:
            raise _refused(file, f"it turns {rope.dim} of {head_dim} dimensions of a head")
        ours["partial_rotary_factor"] = rope.dim / head_dim
    return {**existing, **ours}
