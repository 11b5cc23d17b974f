"""What there is to choose from: every registered method with its options, asked of the methods themselves."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError, nearest
from owl_compress.exports import EXPORTERS, IMPORTERS
from owl_compress.options import Option
from owl_compress.pipeline.methods import (
    ALLOCATORS,
    AUTO,
    BACKENDS,
    DEFAULT_ALLOCATOR,
    DEFAULT_BACKEND,
    DEFAULT_RECOVERY,
    RECOVERIES,
)
from owl_compress.registry import Registry


@dataclass(frozen=True)
class Offer:
    """One method, metric or form.

    Attributes:
        name: what it is asked for by.
        summary: the first sentence of its documentation.
        is_default: whether it is meant where nobody says.
        is_built_in: whether it came with this package.
        options: what it takes.
        unit: what a backend's budgets count; None for all others.
    """

    name: str
    summary: str
    is_default: bool
    is_built_in: bool
    options: tuple[Option, ...] = ()
    unit: Unit | None = None


@dataclass(frozen=True)
class Shelf:
    """All of one kind; `broken` says of each that cannot be used why, in a line."""

    kind: str
    purpose: str
    offers: tuple[Offer, ...]
    broken: tuple[str, ...]


_AUTO = Offer(
    AUTO,
    "Tries plans of the others on the model and takes the best, for run and tune: which with --candidates, "
    "for how much with --max-cost.",
    is_default=False,
    is_built_in=True,
)
"""No allocator, which are pure numbers, but where a name for one is asked for, it may be named."""


def shelf(kind: str) -> Shelf:
    """All there is of a kind: allocators, backends, metrics, forms, exporters, tools or sources.

    Raises:
        RequestError: another kind.
    """
    if kind not in SHELVES:
        raise RequestError(f"there is no list of {kind!r}: {nearest(kind, SHELVES)}")
    return SHELVES[kind]()


def _allocators() -> Shelf:
    shelf = _methods("allocators", "divide the budget: --allocator NAME", ALLOCATORS, DEFAULT_ALLOCATOR)
    return replace(shelf, offers=tuple(sorted((*shelf.offers, _AUTO), key=lambda offer: offer.name)))


def _backends() -> Shelf:
    return _methods("backends", "carry a plan out: --backend NAME", BACKENDS, DEFAULT_BACKEND)


def _methods(kind: str, purpose: str, registry: Registry, default: str | None = None) -> Shelf:
    def offer(name: str) -> Offer:
        options, method = registry.options(name), registry.load(name)
        return Offer(
            name, _summary(method), name == default, name in registry.builtin, options,
            getattr(method, "unit", None),
        )  # fmt: skip

    return _shelf(kind, purpose, registry, offer)


def _metrics() -> Shelf:
    from owl_compress.importance.metrics import DEFAULT_METRICS, METRICS  # noqa: PLC0415 - loads torch

    defaults = {name.partition("@")[0] for name in DEFAULT_METRICS}

    def offer(name: str) -> Offer:
        metric = METRICS.load(name)
        with METRICS.answering_for(name, "used"):
            takes_parameter = len(inspect.signature(metric).parameters) == 2
        shown = f"{name}@M" if takes_parameter else name
        return Offer(shown, _summary(metric), name in defaults, name in METRICS.builtin)

    return _shelf("metrics", "say how important a block is: --metric NAME", METRICS, offer)


def _forms() -> Shelf:
    return _stored("forms", "how weights lie on disk, each taken where it is due", is_asked_for=False)


def _exporters() -> Shelf:
    return _stored("exporters", "write for other software: --export NAME", is_asked_for=True)


def _tools() -> Shelf:
    return _methods("tools", "carry plans out elsewhere: export --to NAME", EXPORTERS)


def _recoveries() -> Shelf:
    return _methods(
        "recoveries", "train what was compressed: recover --method NAME", RECOVERIES, DEFAULT_RECOVERY
    )


def _sources() -> Shelf:
    return _methods("sources", "decide elsewhere what is carried out here: import --from NAME", IMPORTERS)


def _stored(kind: str, purpose: str, *, is_asked_for: bool) -> Shelf:
    from owl_compress.checkpoints.stored_forms import STORED_FORMS  # noqa: PLC0415 - only where it is asked for

    def offer(name: str) -> Offer | None:
        form = STORED_FORMS.load(name)
        if bool(getattr(form, "is_asked_for", False)) is not is_asked_for:
            return None
        return Offer(name, _summary(form), is_default=False, is_built_in=name in STORED_FORMS.builtin)

    return _shelf(kind, purpose, STORED_FORMS, offer)


def _shelf(kind: str, purpose: str, registry: Registry, offer: Callable[[str], Offer | None]) -> Shelf:
    """The offers of a registry, and what is said of those that another package broke."""
    offers, broken = list[Offer](), list[str]()
    for name in registry.names():
        try:
            found = offer(name)
        except RequestError as error:
            broken.append(str(error))
        else:
            offers += [found] if found else []
    return Shelf(kind, purpose, tuple(offers), tuple(broken))


def _summary(method: Any) -> str:
    """The first paragraph of its documentation, on one line; a dataclass without any has none."""
    text = inspect.getdoc(method) or ""
    if text.startswith(f"{getattr(method, '__name__', '')}("):  # what a dataclass writes by itself
        return ""
    return " ".join(text.partition("\n\n")[0].split())


SHELVES: Mapping[str, Callable[[], Shelf]] = {
    "allocators": _allocators,
    "backends": _backends,
    "metrics": _metrics,
    "forms": _forms,
    "exporters": _exporters,
    "recoveries": _recoveries,
    "tools": _tools,
    "sources": _sources,
}
"""The kinds there are."""
