"""Whose plans `--allocator auto` tries: allocators with the settings that they say are worth trying."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from owl_compress.allocators import CHEAPEST, EQUAL_SHARES, Allocator, Target, Tunable, reads_damage
from owl_compress.documents.labels import shown_value
from owl_compress.documents.option_names import option_name
from owl_compress.documents.recipe import Recipe
from owl_compress.errors import RequestError, nearest
from owl_compress.pipeline.methods import ALLOCATORS, AUTO, BACKENDS


@dataclass(frozen=True)
class Candidate:
    """An allocator with its options: whoever is tried makes one plan.

    Attributes:
        allocator: see there.
        varied: the options in which it differs from others of the same allocator.
    """

    allocator: Allocator
    varied: frozenset[str] = frozenset()

    @cached_property
    def options(self) -> Mapping[str, Any]:
        """Its options, as users give them."""
        return ALLOCATORS.as_given(self.allocator.name, asdict(self.allocator))

    @cached_property
    def name(self) -> str:
        """The allocator, and what tells it from others of the same, in words."""
        told = (f"{name} {shown_value(value)}" for name, value in self.options.items() if name in self.varied)
        return ", ".join([self.allocator.name, *told])

    @property
    def is_baseline(self) -> bool:
        """Whether it gives equal shares."""
        return self.allocator.name == EQUAL_SHARES

    @property
    def reads_damage(self) -> bool:
        """Whether it needs a sensitivity profile."""
        return reads_damage(self.allocator)

    @property
    def metric(self) -> str | None:
        """What of a report it reads, if it says that."""
        return getattr(self.allocator, "metric", None)


def check_candidates(recipe: Recipe) -> None:
    """Refuse candidates where nothing is tried, and where something is, what leaves nothing to try.

    Raises:
        RequestError: see above.
    """
    if recipe.allocator != AUTO:
        if recipe.candidates is not None:
            raise RequestError(f"candidates are tried by --allocator {AUTO}: name that one, or drop them")
        return
    if recipe.solver == "optimal":
        raise RequestError(
            f"solver 'optimal' decides by importance alone, and allocator {AUTO!r} tries how far to go by "
            "it: drop --solver"
        )
    of_backend = BACKENDS.options(recipe.backend) if recipe.backend in BACKENDS.names() else ()
    chosen = {one.name for _, one in ALLOCATORS.every_option()} - {one.name for one in of_backend}
    for name in recipe.options:
        if name in chosen:
            raise RequestError(
                f"{option_name(name)} is one of the options that allocator {AUTO!r} chooses: drop it, or "
                "name the allocator that takes it"
            )


def candidates_of(recipe: Recipe, target: Target) -> tuple[Candidate, ...]:
    """All that the recipe has tried: the cheapest always, and those that it names or else all with settings.

    Raises:
        RequestError: an allocator that does not exist, or one whose options cannot be meant.
    """
    known = ALLOCATORS.names()
    for name in recipe.candidates or ():
        if name not in known:
            raise RequestError(f"unknown candidate {name!r} of --allocator {AUTO}: {nearest(name, known)}")
    named = recipe.candidates or _tunable()
    names = dict.fromkeys((*CHEAPEST, *named))
    return tuple(
        one for name in names for one in _telling_apart(map(Candidate, _settings(name, recipe, target)))
    )


def _telling_apart(settings: Iterable[Candidate]) -> list[Candidate]:
    """The settings of one allocator, which say in what they differ."""
    every = list(settings)
    varied = {
        name for one in every for name in one.options if one.options[name] != every[0].options.get(name)
    }
    return [replace(one, varied=frozenset(varied)) for one in every]


def thinned(candidates: Sequence[Candidate], n_each: int | None) -> tuple[Candidate, ...]:
    """The first `n_each` settings of each allocator; of 0 the first of the cheapest alone, of None all."""
    if n_each is None:
        return tuple(candidates)
    names = [one.allocator.name for one in candidates]
    return tuple(
        one
        for place, one in enumerate(candidates)
        if names[:place].count(one.allocator.name) < max(n_each, 1)
        and (n_each or one.allocator.name in CHEAPEST)
    )


def _tunable() -> list[str]:
    return [name for name, method in ALLOCATORS.loadable() if _is_tunable(method)]


def _is_tunable(method: Any) -> bool:
    return isinstance(method, type) and issubclass(method, Tunable)


def _settings(name: str, recipe: Recipe, target: Target) -> Sequence[Allocator]:
    method = ALLOCATORS.load(name)
    if _is_tunable(method):
        with ALLOCATORS.answering_for(name, "used"):
            found: Sequence[Allocator] = method.settings_to_try(target)
            return found
    seeded = {"seed": recipe.seed} if any(one.name == "seed" for one in ALLOCATORS.options(name)) else {}
    return (ALLOCATORS.create(name, seeded),)
