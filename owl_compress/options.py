"""The options of a method: the fields of its frozen dataclass, as recipes, commands and help see them.

A field may say more of itself through `option`: what a user is told, what range it has, and what users call
it. Other packages need nothing from here for that: the same keys in the metadata of an ordinary field do.
"""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from functools import cached_property
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from owl_compress.errors import RequestError, first_problem, nearest, shown

_MOST = 2**128

NONE = "none"
"""How a user writes None, where an option has it for a value of its own."""


def option(default: Any, text: str, *, name: str | None = None, stated: bool = False, **bounds: float) -> Any:
    """A field of a method's dataclass, with what the user interfaces need to know of it.

    Args:
        default: its value where nothing is given; None may stand for "left open".
        text: one sentence for help.
        name: what users call it, where that is not the field's own name. A field that is True by default is a
            switch to turn it off, and is called "no_" and its name unless said otherwise.
        stated: the recipe that is written beside a result names it even at its default.
        bounds: `at_least`, `at_most`, `above` or `below` of a number.
    """
    return field(default=default, metadata={"help": text, "name": name, "stated": stated, **bounds})


@dataclass(frozen=True)
class Option:
    """One field of a method, seen from outside.

    Attributes:
        field: its name in the dataclass.
        name: what users call it, with underscores.
        help: what they are told.
        default: of the field.
        annotation: its type.
        stated: see `option`.
        bounds: by the names that `option` takes.
    """

    field: str
    name: str
    help: str
    default: Any
    annotation: Any
    stated: bool
    bounds: Mapping[str, float]

    @property
    def is_required(self) -> bool:
        """Whether there is no default."""
        return self.default is MISSING

    @property
    def is_switch(self) -> bool:
        """Whether it is given by being named, without a value."""
        return self.annotation is bool

    @property
    def is_turned(self) -> bool:
        """Whether naming it makes the field false."""
        return self.is_switch and self.default is True

    @cached_property
    def choices(self) -> tuple[str, ...]:
        """The words that it may be; empty where it is no choice between words."""
        words: list[str] = []
        for kind in self._kinds:
            if get_origin(kind) is Literal:
                words += map(str, get_args(kind))
            elif isinstance(kind, type) and issubclass(kind, Enum):
                words += (str(member.value) for member in kind)
            else:
                return ()
        return tuple(words)

    @property
    def _kinds(self) -> tuple[Any, ...]:
        """The types that it may have, None left aside."""
        is_one = get_origin(self.annotation) is Literal or not get_args(self.annotation)
        kinds = (self.annotation,) if is_one else get_args(self.annotation)
        return tuple(kind for kind in kinds if kind is not NoneType)

    def parsed(self, given: Any) -> Any:
        """The value of the field for what a user gave under the option's name, text as well as numbers.

        Raises:
            RequestError: of another type, outside its range, or none of its choices.
        """
        value = self.typed(given)
        return not value if self.is_turned else value

    def typed(self, given: Any) -> Any:
        """The value of the field for what was given as that; see `parsed`."""
        if given == NONE and NoneType in get_args(self.annotation):
            return None
        if self.choices and str(given) not in self.choices:
            raise RequestError(
                f"unknown {self.shown_name} {shown(given)}: {nearest(str(given), self.choices)}"
            )
        if isinstance(given, bool) and set(self._kinds) <= {int, float}:
            raise RequestError(f"{self.shown_name} takes a value, not {given}")
        try:
            value = TypeAdapter(self.annotation).validate_python(self._literal(given))
        except ValidationError as error:
            raise RequestError(f"{self.shown_name}: {first_problem(error)}") from error
        if isinstance(value, int) and abs(value) >= _MOST:
            raise RequestError(f"{self.shown_name} {shown(value)} is too large for any setting")
        self._check_range(value)
        return value

    def _literal(self, given: Any) -> Any:
        """The member of a `Literal` that a word stands for: it may be a number."""
        for kind in self._kinds:
            members = get_args(kind) if get_origin(kind) is Literal else ()
            given = next((member for member in members if str(member) == given), given)
        return given

    def given_for(self, value: Any) -> Any:
        """What a user gives for that `value` of the field, as plain data; None for a switch left alone."""
        if self.is_switch:
            return True if value is not self.default else None
        return NONE if value is None else getattr(value, "value", value)

    @property
    def shown_type(self) -> str:
        """What kind of value it takes, in a word: "int", "float or none"."""
        word = "text" if self.choices else getattr(self._kinds[0], "__name__", "text")
        is_none_meant = NoneType in get_args(self.annotation) and self.default is not None
        return f"{word} or {NONE}" if is_none_meant else word

    @property
    def shown_range(self) -> str:
        """Its range in words: "at least 0, below 1"; empty where it has none."""
        return ", ".join(f"{name.replace('_', ' ')} {bound:g}" for name, bound in self.bounds.items())

    @property
    def shown_name(self) -> str:
        """Its name on the command line, without the leading hyphens."""
        return self.name.replace("_", "-")

    def _check_range(self, value: Any) -> None:
        if not isinstance(value, int | float):
            return
        fits = {
            "at_least": lambda bound: value >= bound,
            "at_most": lambda bound: value <= bound,
            "above": lambda bound: value > bound,
            "below": lambda bound: value < bound,
        }
        for name, bound in self.bounds.items():
            if not fits[name](bound):
                raise RequestError(f"{self.shown_name} {value:g} must be {name.replace('_', ' ')} {bound:g}")


def options_of(method: type) -> tuple[Option, ...]:
    """The options of a method, in the order of its fields."""
    annotations = get_type_hints(method)
    return tuple(
        Option(
            field=one.name,
            name=one.metadata.get("name") or _usual_name(one.name, one.default),
            help=one.metadata.get("help", ""),
            default=one.default if one.default_factory is MISSING else one.default_factory(),
            annotation=annotations[one.name],
            stated=bool(one.metadata.get("stated")),
            bounds={
                key: one.metadata[key]
                for key in ("at_least", "at_most", "above", "below")
                if key in one.metadata
            },
        )
        for one in fields(method)
        if one.init
    )


def as_given(options: Iterable[Option], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of a method, under the names that users give it with, for people to read.

    A record has the fields of a method's dataclass, and what shaped its answer besides. A switch left alone
    is not said, nor a setting that nobody made.
    """
    known = {one.field: one for one in options}
    given: dict[str, Any] = {}
    for field_name, value in parameters.items():
        one = known.get(field_name)
        if one is None:
            given[field_name.replace("_", "-")] = value
        elif value is not None or one.default is not None:
            given[one.shown_name] = one.given_for(value)
    return {name: value for name, value in given.items() if value not in (None, {}, [])}


def build(method: type, what: str, given: Mapping[str, Any]) -> Any:
    """A `method` with the options that were given, each under the name that users or its field have for it.

    None counts as not given. `what` names the method in messages.

    Raises:
        RequestError: an option that it does not take, or a value that it refuses.
    """
    known = {one.name: one for one in options_of(method)}
    by_field = {one.field: one for one in known.values()}
    values: dict[str, Any] = {}
    for name, value in ((key.replace("-", "_"), value) for key, value in given.items()):
        if value is None:
            continue
        if name not in known and name not in by_field:
            raise RequestError(not_taken(what, name, known.values()))
        try:
            if name in known:
                values[known[name].field] = known[name].parsed(value)
            else:
                values[name] = by_field[name].typed(value)
        except RequestError as error:
            raise RequestError(f"{what}: {error}") from error
    lacking = [one.shown_name for one in known.values() if one.is_required and one.field not in values]
    if lacking:
        raise RequestError(f"{what} cannot do without {' and '.join(lacking)}")
    try:
        return method(**values)
    except ValueError as error:
        raise RequestError(f"{what}: {error}") from error


def build_from(method: type, what: str, given: Mapping[str, Any]) -> Any:
    """A `method` with those options among the ones `given` that it has; the others are somebody else's.

    Raises:
        RequestError: a value that it refuses.
    """
    names = {one.name for one in options_of(method)}
    return build(method, what, {name: value for name, value in given.items() if name in names})


def not_taken(what: str, name: str, options: Iterable[Option]) -> str:
    """The refusal of an option that a method does not have."""
    takes = ", ".join(one.shown_name for one in options)
    listed = f"it takes: {takes}" if takes else "it takes no options"
    return f"{what} takes no {name.replace('_', '-')}; {listed}"


def _usual_name(name: str, default: Any) -> str:
    return f"no_{name}" if default is True else name
