"""Files of other tools as plain values: JSON and YAML, with one line for what is wrong."""

import json
from collections.abc import Mapping
from typing import Any

from owl_compress.documents.strict_json import parse_json
from owl_compress.documents.yaml12 import load_plain
from owl_compress.errors import RequestError, shown


def object_of(text: str, kind: str, *, is_yaml: bool = False) -> Mapping[str, Any]:
    """The mapping that a text holds.

    Raises:
        RequestError: it is no JSON or YAML, or another value.
    """
    try:
        content = load_plain(text) if is_yaml else parse_json(text)
    except ValueError as error:
        raise RequestError(f"it is no {kind}: {error}") from error
    if not isinstance(content, Mapping):
        raise RequestError(f"it is no {kind}: expected a mapping, not {shown(content)}")
    return content


def part_of(content: Mapping[str, Any], key: str, kind: type[Any], where: str) -> Any:
    """What a mapping has under a key.

    Raises:
        RequestError: nothing, or a value of another kind.
    """
    if key not in content:
        raise RequestError(f"{where} has no {key!r}")
    return checked(content[key], kind, f"{key!r} of {where}")


def checked(value: Any, kind: type[Any], what: str) -> Any:
    """The value, which is to be of that kind.

    Raises:
        RequestError: it is not.
    """
    is_flag = isinstance(value, bool) and kind is not bool
    if is_flag or not isinstance(value, (int, float) if kind is float else kind):
        raise RequestError(f"{what} is {shown(value)}, not {_KINDS[kind]}")
    return value


_KINDS = {dict: "a mapping", list: "a list", float: "a number", int: "a whole number", str: "text"}


def json_of(content: Mapping[str, Any]) -> str:
    """A mapping as a JSON file."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
