"""Safe YAML with the scalars of version 1.2, for recipes written by hand."""

import re
from collections.abc import Hashable
from math import isfinite
from typing import Any

import yaml

from owl_compress.documents.strict_json import MAX_DIGITS, has_surrogates

_MAX_DEPTH = 20
"""Nesting that is read: a recipe has three levels."""


class Loader(yaml.SafeLoader):
    """YAML with the scalars of version 1.2.

    Version 1.1, PyYAML's own, reads 3:8 as the sexagesimal number 188, `no` as false and 1e-3 as text.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012 - the stubs declare it on the instance

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002
        """A mapping in which no key is given twice."""
        keys = [str(key.value) for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise ValueError(f"key {twice[0]!r} is given twice")
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """Quotes whatever either version of YAML would take for something else than text."""


_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?")
_SCALARS = (
    ("tag:yaml.org,2002:null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", _INTEGER.pattern, list("-+0123456789")),
    ("tag:yaml.org,2002:float", _FLOAT.pattern, list("-+.0123456789")),
)
for _tag, _pattern, _first in _SCALARS:
    for _yaml in (Loader, Dumper):
        _yaml.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)


def load_plain(text: str) -> Any:
    """The value that a YAML text of plain mappings, lists and scalars holds.

    Raises:
        ValueError: a key given twice, an alias or a tag, half a surrogate pair, deep nesting, or a number of
            too many digits or beyond the range of floats, or it is no YAML.
    """
    try:
        _check_plain(text)
        # A SafeLoader with fewer scalar rules: it builds plain values only.
        return yaml.load(text, Loader=Loader)  # noqa: S506
    except yaml.YAMLError as error:
        raise ValueError(_problem(error)) from error


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong and where, in one line and without the text itself."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"character {error.position + 1}: {error.reason}"
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    said = ", ".join(part for part in (error.context, error.problem) if part)
    return f"{place}{said}"


def key_lines(text: str) -> dict[tuple[str | int, ...], int]:
    """The line, counted from 1, of every key of a text that `load_plain` has read, by the way to it.

    The way leads through keys and, in lists, through numbers counted from 0.
    """
    found: dict[tuple[str | int, ...], int] = {}
    todo: list[tuple[tuple[str | int, ...], yaml.Node | None]] = [((), yaml.compose(text, Loader=Loader))]
    while todo:
        way, node = todo.pop()
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                found[(*way, key.value)] = key.start_mark.line + 1
                todo.append(((*way, key.value), value))
        elif isinstance(node, yaml.SequenceNode):
            todo += [((*way, place), item) for place, item in enumerate(node.value)]
    return found


def _check_plain(text: str) -> None:
    """Look at the events, which do not nest, before anything is built of them."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        match event:
            case yaml.AliasEvent():
                raise ValueError(f"line {line} refers to another place by *{event.anchor}: write it out")
            case yaml.ScalarEvent(tag=str()) | yaml.CollectionStartEvent(tag=str()):
                raise ValueError(f"line {line} has the tag {event.tag!r}: write a plain value")
            case yaml.CollectionStartEvent():
                depth += 1
                if depth > _MAX_DEPTH:
                    raise ValueError(f"line {line} is nested deeper than {_MAX_DEPTH} levels")
            case yaml.CollectionEndEvent():
                depth -= 1
            case yaml.ScalarEvent():
                _check_scalar(event.value, line, is_plain=event.implicit[0])


def _check_scalar(value: str, line: int, *, is_plain: bool) -> None:
    if has_surrogates(value):
        raise ValueError(f"line {line} holds half a surrogate pair, which is no text")
    if is_plain and _INTEGER.fullmatch(value) and len(value) > MAX_DIGITS + 1:
        raise ValueError(f"line {line} has a number of {len(value)} digits")
    if is_plain and _FLOAT.fullmatch(value) and not isfinite(float(value)):
        raise ValueError(f"line {line} has a number that is too large, {value[:20]}")
