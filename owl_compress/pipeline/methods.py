"""The methods there are: the tables of allocators and backends, and what all of them take."""

from owl_compress.allocators import ALLOCATORS, DEFAULT_ALLOCATOR
from owl_compress.backends import BACKENDS, DEFAULT_BACKEND
from owl_compress.options import Option, options_of
from owl_compress.registry import Registry

__all__ = ["ALLOCATORS", "BACKENDS", "DEFAULT_ALLOCATOR", "DEFAULT_BACKEND", "options_of_all"]


def options_of_all(registry: Registry) -> tuple[tuple[str, Option], ...]:
    """The options of all methods in a table, each with the name of the method.

    A method of another package that cannot be imported is left out: it is refused when it is asked for.
    """
    return tuple((name, one) for name, method in registry.loadable() for one in options_of(method))
