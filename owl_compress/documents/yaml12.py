"""Safe YAML with the scalars of version 1.2, for recipes written by hand."""

import re
from collections.abc import Hashable
from typing import Any

import yaml


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


_SCALARS = (
    ("tag:yaml.org,2002:null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?",
        list("-+.0123456789"),
    ),
)
for _tag, _pattern, _first in _SCALARS:
    for _yaml in (Loader, Dumper):
        _yaml.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)
