"""Names to implementations: built-in ones by import path, third-party ones by entry point."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from owl_compress.errors import RequestError, nearest


@dataclass(frozen=True)
class Registry:
    """A table of implementations, imported only when asked for.

    `builtin` maps a name to "module:attribute"; packages add more through the entry point group `group`.
    A built-in name cannot be replaced from outside.
    """

    kind: str
    group: str
    builtin: Mapping[str, str]

    @cached_property
    def _paths(self) -> dict[str, str]:
        third_party = {point.name: point.value for point in entry_points(group=self.group)}
        return third_party | dict(self.builtin)

    def names(self) -> tuple[str, ...]:
        """All registered names, sorted."""
        return tuple(sorted(self._paths))

    def load(self, name: str) -> Any:
        """Import and return what is registered under `name`.

        Raises:
            RequestError: nothing is registered under that name; the nearest name is offered.
        """
        if name not in self._paths:
            raise RequestError(f"unknown {self.kind} {name!r}: {nearest(name, self._paths)}")
        return EntryPoint(name=name, value=self._paths[name], group=self.group).load()
