"""Values that options of a recipe take, each with its check, and with the other ways it may be written in."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, JsonValue

from owl_compress.documents.quantities import n_tokens, parsed_bytes, parsed_seconds
from owl_compress.documents.units import Name, Sublayer, checked_text

_NM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*:\s*(\d+)\s*")


def _number_as_text(quantity: Any) -> Any:
    is_number = isinstance(quantity, int | float) and not isinstance(quantity, bool)
    return str(quantity) if is_number else quantity


def _path_as_text(name: Any) -> Any:
    return str(name) if isinstance(name, Path) else name


def _one_name_as_list(names: Any) -> Any:
    names = [names] if isinstance(names, str | Path) else names
    return [_path_as_text(one) for one in names] if isinstance(names, list | tuple) else names


def _split_at_commas(choices: Any) -> Any:
    return [one.strip() for one in choices.split(",")] if isinstance(choices, str) else choices


def _split_levels(levels: Any) -> Any:
    """Levels of a file may be numbers; what each of them stands for depends on the backend."""
    if isinstance(levels, str | int | float) and not isinstance(levels, bool):
        levels = str(levels).split(",")
    if not isinstance(levels, list | tuple):
        return levels
    return [one if isinstance(one, bool) else str(one).strip() for one in levels]


def _split_pins(pins: Any) -> Any:
    """Accept NAME=VALUE, one or a list of them, as on the command line."""
    pins = [pins] if isinstance(pins, str) else pins
    if not isinstance(pins, list | tuple):
        return pins
    wrong = [pin for pin in pins if not isinstance(pin, str) or "=" not in pin]
    if wrong:
        raise ValueError(f"takes NAME=VALUE, not {wrong[0]!r}")
    split = [(pin.rpartition("=")[0].strip(), pin.rpartition("=")[2].strip()) for pin in pins]
    names = [name for name, _ in split]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"names {twice!r} twice: give it one value")
    return dict(split)


def _is_a_share(share: float) -> float:
    if not 0 <= share < 1:
        raise ValueError("is the share removed, at least 0 and below 1; 0.7 removes 70 %")
    return share


def _is_n_of_m(pattern: str) -> str:
    found = _NM.fullmatch(pattern)
    if not found:
        raise ValueError("is N:M, N weights kept of every M, such as 3:8 or 2.5:8")
    if not 0 < float(found[1]) <= int(found[2]):
        raise ValueError("keeps N of M weights, so N is above 0 and at most M")
    return f"{found[1]}:{found[2]}"


def _is_a_size(size: str) -> str:
    parsed_bytes(size)
    return size


def _is_a_time(latency: str) -> str:
    parsed_seconds(latency)
    return latency


def _is_no_slowdown(speedup: float) -> float:
    if speedup < 1:
        raise ValueError("is how many times as fast, at least 1; 1.5 takes two thirds of the time")
    return speedup


def _is_a_number_of_tokens(cost: Any) -> Any:
    text = _number_as_text(cost)
    if isinstance(text, str) and not n_tokens(text):
        raise ValueError("is a number of forward tokens above 0, such as 60000 or 60k")
    return text


def _are_text(names: tuple[str, ...]) -> tuple[str, ...]:
    _check_texts(names)
    return names


def _names_are_text(values: dict[str, Any]) -> dict[str, Any]:
    _check_texts((*values, *values.values()))
    return values


def _check_texts(texts: Iterable[Any]) -> None:
    for text in texts:
        if isinstance(text, str):
            checked_text(text)


PlaceName = Annotated[Name, BeforeValidator(_path_as_text)]
"""A file, a folder, or what stands for one; a path is as good."""

Share = Annotated[float, AfterValidator(_is_a_share)]
"""The share that is removed."""

Pattern = Annotated[str, AfterValidator(_is_n_of_m)]
"""N:M."""

Bytes = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_is_a_size)]
"""300MB, or a number of bytes."""

Seconds = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_is_a_time)]
"""120ms, or a number of seconds."""

Speedup = Annotated[float, AfterValidator(_is_no_slowdown)]
"""How many times as fast."""

Tokens = Annotated[str, BeforeValidator(_is_a_number_of_tokens)]
"""60k, or a number of tokens."""

Levels = Annotated[tuple[str, ...], BeforeValidator(_split_levels)]
"""0.2,0.3 or 2:8,3:8, or a list of them, of numbers too."""

Integers = Annotated[tuple[int, ...], BeforeValidator(_split_at_commas)]
"""2,3,4 or a list."""

Sublayers = Annotated[tuple[Sublayer, ...], BeforeValidator(_split_at_commas)]
"""attention,mlp or a list."""

MethodNames = Annotated[tuple[Name, ...], BeforeValidator(_split_at_commas)]
"""owl,alpha or a list."""

Tasks = Annotated[tuple[str, ...], BeforeValidator(_split_at_commas), AfterValidator(_are_text)]
"""boolq,rte or a list."""

Names = Annotated[tuple[str, ...], BeforeValidator(_one_name_as_list), AfterValidator(_are_text)]
"""One name or a list; a comma may be part of each."""

Pins = Annotated[dict[str, float], BeforeValidator(_split_pins), AfterValidator(_names_are_text)]
"""Values by name, or NAME=VALUE, one or a list."""

MethodOptions = Annotated[dict[str, JsonValue], AfterValidator(_names_are_text)]
"""Options of methods by name."""
