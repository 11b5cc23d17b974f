"""Names to implementations: built-in ones by import path, third-party ones by entry point."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from owl_compress.errors import RequestError, nearest
from owl_compress.options import build

logger = logging.getLogger(__name__)


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
            RequestError: nothing is registered under that name (the nearest is offered), or what another
                package registered cannot be imported.
        """
        if name not in self._paths:
            raise RequestError(f"unknown {self.kind} {name!r}: {nearest(name, self._paths)}")
        try:
            return EntryPoint(name=name, value=self._paths[name], group=self.group).load()
        except Exception as error:  # whatever another package raises when it is imported
            if name in self.builtin:
                raise
            reason = " ".join(str(error).split())
            raise RequestError(
                f"{self.kind} {name!r} cannot be imported ({reason}): repair or remove the package that "
                "brings it"
            ) from error

    def loadable(self) -> Iterator[tuple[str, Any]]:
        """Name and implementation of all that can be imported; others are told about and left out."""
        for name in self.names():
            try:
                yield name, self.load(name)
            except RequestError as error:
                logger.warning("%s", error)

    def create(self, name: str, given: Mapping[str, Any] | None = None) -> Any:
        """The method registered as `name`, with the options that were given; None counts as not given.

        Raises:
            RequestError: unknown name, an option that it does not take, or a value that it refuses.
        """
        return build(self.load(name), f"{self.kind} {name!r}", given or {})
