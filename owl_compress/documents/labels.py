"""Settings in a few words: what cells, methods and groups are called."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

_SPEAK_FOR_THEMSELVES = {"model", "backend", "allocator", "metric", "nm", "plan"}
"""Options whose value tells by itself what it is."""


def label(settings: Mapping[str, JsonValue]) -> str:
    """Settings in a few words: "wanda sparsity=0.7 owl lod@5 seed=1"."""
    return " ".join(_word(name, value) for name, value in settings.items() if value is not None)


def _word(name: str, value: JsonValue) -> str:
    text = shown_value(value)
    if name in {"model", "plan"} and "/" in text:
        text = Path(text).name
    return text if name in _SPEAK_FOR_THEMSELVES else f"{name}={text}"


def shown_value(value: Any) -> str:
    """A value as people write it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ",".join(f"{name}={shown_value(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(shown_value, value))
    return str(value)
