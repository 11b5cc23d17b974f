"""Names to implementations: built-in ones by import path, third-party ones by entry point."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from owl_compress.errors import RequestError, nearest
from owl_compress.options import Option, as_given, build, options_of

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
        entry = EntryPoint(name=name, value=self._paths[name], group=self.group)
        with self.answering_for(name, "imported"):
            return entry.load()

    def loadable(self) -> Iterator[tuple[str, Any]]:
        """Name and implementation of all that can be imported; the others are refused when asked for."""
        for name in self.names():
            try:
                yield name, self.load(name)
            except RequestError as error:
                logger.info("%s", error)

    def options(self, name: str) -> tuple[Option, ...]:
        """The options of the method registered as `name`.

        Raises:
            RequestError: unknown name, or what another package registered is no method.
        """
        method = self.load(name)
        with self.answering_for(name, "used"):
            found = options_of(method)
            if getattr(method, "name", None) != name:
                raise TypeError(f"its class has to state name = {name!r}")
            return found

    def as_given(self, name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """What a record says of the method `name`, as users give it; of one that is not here, as it is."""
        try:
            options = self.options(name)
        except RequestError as error:
            logger.info("%s", error)
            options = ()
        return as_given(options, parameters)

    def every_option(self) -> tuple[tuple[str, Option], ...]:
        """The options of all methods that can be used, each with the name of the method."""
        found: list[tuple[str, Option]] = []
        for name, _ in self.loadable():
            try:
                found += ((name, option) for option in self.options(name))
            except RequestError as error:
                logger.info("%s", error)
        return tuple(found)

    def create(self, name: str, given: Mapping[str, Any] | None = None) -> Any:
        """The method registered as `name`, with the options that were given; None counts as not given.

        Raises:
            RequestError: unknown name, an option that it does not take, or a value that it refuses.
        """
        self.options(name)
        with self.answering_for(name, "made"):
            return build(self.load(name), f"{self.kind} {name!r}", given or {})

    @contextmanager
    def answering_for(self, name: str, what: str) -> Iterator[None]:
        """Turn whatever the code of another package raises into one line; in ours it is a defect."""
        try:
            yield
        except RequestError:
            raise
        except (Exception, SystemExit) as error:
            if name in self.builtin:
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RequestError(
                f"{self.kind} {name!r} cannot be {what} ({reason}): repair or remove the package that "
                "brings it"
            ) from error
