"""Arguments of the Python interface, held against the annotations of what is called.

Type checkers read the same annotations; most callers use none. What is natural is taken (numbers of numpy,
paths of any library, a list where a tuple is kept), everything else is told at the door, in one line, and not
by whatever it would break deep inside.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import cache, wraps
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    Unpack,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from owl_compress.errors import RequestError, shown

_Called = TypeVar("_Called", bound=Callable[..., Any])

_SOURCES = {
    "Consent": "Consent(trust_remote_code=True) is one",
    "ImportanceReport": "measure makes one, ImportanceReport.read(path) reads one",
    "LoadedModel": "load(source) returns one",
    "Module": "give a model of transformers, such as load(source).model",
    "Plan": "allocate makes one, Plan.read(path) reads one",
    "Recipe": "Recipe.from_options({...}) makes one, Recipe.read(path) reads one",
    "Result": "compress_ returns one, Result.read(path) reads one",
    "SensitivityProfile": "profile makes one, SensitivityProfile.read(path) reads one",
    "Session": "Session.open(recipe) makes one",
    "TokenWindows": "calibrate(loaded, text) makes them",
}
"""Where a user gets what is wanted, by the name of its class."""

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "True or False", Path: "a path"}


class _UnfitError(Exception):
    """A value that is not what an annotation says."""


def checked(called: _Called) -> _Called:
    """The same function, or dataclass, with its arguments checked, and made exactly what is annotated.

    An argument whose annotation is `Annotated[Any, kind]` has to be of that class, and is Any to a type
    checker. Arguments that are missing or unknown stay Python's own TypeError.

    Raises:
        RequestError: by the call, for an argument of another type: what it has to be, what was given, and
            where to get one.
    """
    if isinstance(called, type):
        initialise = called.__init__  # type: ignore[misc]  # that of the dataclass itself
        called.__init__ = _settling(initialise, called, called.__qualname__)  # type: ignore[misc]
        return called
    settling: _Called = _settling(called, called, called.__qualname__)
    return settling


def _settling(function: Any, annotated: Any, name: str) -> Any:
    declared = signature(function)

    @cache
    def hints() -> dict[str, Any]:  # read at the first call: names may be of modules that are still loading
        return get_type_hints(annotated, include_extras=True)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = declared.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # Python's own words
        for parameter, given in bound.arguments.items():
            hint = hints().get(parameter, Any)
            if declared.parameters[parameter].kind is Parameter.VAR_KEYWORD:
                known = _of_keywords(hint)
                settled = {key: _argument(key, one, known.get(key, Any)) for key, one in given.items()}
                bound.arguments[parameter] = settled
            else:
                bound.arguments[parameter] = _argument(parameter, given, hint)
        return function(*bound.args, **bound.kwargs)

    call.__qualname__ = name if function is annotated else function.__qualname__
    return call


def _of_keywords(hint: Any) -> dict[str, Any]:
    """The annotations of further keywords, where a TypedDict says what they are."""
    (wanted,) = get_args(hint) if get_origin(hint) is Unpack else (hint,)
    return get_type_hints(wanted, include_extras=True) if is_typeddict(wanted) else {}


def _argument(name: str, given: Any, hint: Any) -> Any:
    try:
        return _settled(given, hint)
    except _UnfitError as error:
        raise RequestError(
            f"{name} has to be {error}, not {_described(given)}{_remedy(given, hint)}"
        ) from None


def _settled(given: Any, hint: Any) -> Any:
    """`given` as the annotation `hint` has it.

    Raises:
        _UnfitError: it is not that; the message says in words what it has to be.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        classes = [one for one in inner[1:] if isinstance(one, type)]
        return _settled(given, classes[0] if classes else inner[0])
    if origin in {Union, UnionType}:
        return _one_of(given, inner)
    if origin is Literal:
        # Which words there are is told by whoever takes them, with the nearest one.
        return _instance(given, tuple({type(one) for one in inner}), f"one of {', '.join(map(repr, inner))}")
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {_settled(key, inner[0]): _settled(one, inner[1]) for key, one in _items(given)}
    if isinstance(origin, type) and issubclass(origin, Iterable):
        return tuple(_settled(one, inner[0]) for one in _members(given, inner[0]))
    return _plain(given, origin or hint)


def _plain(given: Any, kind: Any) -> Any:
    """`given` as a value of `kind`, which is made of no other annotations."""
    if kind in {int, float, bool}:
        return _number(given, kind)
    if kind is Path and isinstance(given, os.PathLike):
        return Path(given)
    if kind is Any or not isinstance(kind, type):
        return given  # a variable of types, or nothing is said of it
    if issubclass(kind, Enum) and given in [member.value for member in kind]:
        return kind(given)
    return _instance(given, (kind,), _word(kind))


def _one_of(given: Any, kinds: tuple[Any, ...]) -> Any:
    expected = []
    for kind in sorted(kinds, key=lambda kind: type(given) is not kind):  # exactly that before all others
        try:
            return _settled(given, kind)
        except _UnfitError as error:
            expected.append(str(error))
    raise _UnfitError(" or ".join(sorted(dict.fromkeys(expected), key="None".__eq__)))


def _instance(given: Any, kinds: tuple[type, ...], expected: str) -> Any:
    if isinstance(given, kinds) and not (isinstance(given, type) and type not in kinds):
        return given
    raise _UnfitError(expected)


def _number(given: Any, kind: type) -> Any:
    """An int, float or bool, of Python or of a library of arrays: those have scalars and 0-d arrays."""
    plain = given.item() if getattr(given, "ndim", None) == 0 and hasattr(given, "item") else given
    if isinstance(plain, bool) is (kind is bool) and isinstance(
        plain, (int, float) if kind is float else kind
    ):
        return plain
    raise _UnfitError(_WORDS[kind])


def _items(given: Any) -> Iterator[tuple[Any, Any]]:
    if not isinstance(given, Mapping):
        raise _UnfitError("a dict of names and values")
    return iter(given.items())


def _members(given: Any, kind: Any) -> Iterator[Any]:
    """The members of a list; text is none, though it is made of letters."""
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise _UnfitError(f"a list of {_WORDS.get(kind, 'values').removeprefix('a ')}")
    return iter(given)


def _word(kind: type) -> str:
    return "None" if kind is NoneType else _WORDS.get(kind) or _with_article(kind.__name__)


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _described(given: Any) -> str:
    if isinstance(given, type):
        return f"the class {given.__name__}"
    if given is None or isinstance(given, str | bytes | int | float):
        return shown(given)
    return _with_article(type(given).__name__)


def _remedy(given: Any, hint: Any) -> str:
    """What to give instead, where that can be told."""
    kinds = {getattr(kind, "__name__", "") for kind in _kinds(hint)}
    if isinstance(given, type):
        return f": make one of it, as {given.__name__}()"
    if "Module" in kinds and hasattr(given, "model"):
        return ": give its .model"
    if isinstance(given, str) and any(get_origin(kind) in {tuple, list, Sequence} for kind in _kinds(hint)):
        return f": write [{shown(given)}]"
    found = [_SOURCES[name] for name in sorted(kinds) if name in _SOURCES]
    return f": {found[0]}" if found else ""


def _kinds(hint: Any) -> Iterator[Any]:
    """The annotation, and what it is a choice between."""
    yield hint
    if get_origin(hint) in {Annotated, Union, UnionType}:
        for one in get_args(hint):
            yield from _kinds(one)
