"""A GGUF file parsed once for configuration, tokenizer and weights.

transformers asks the package gguf three times for the same file, and for the same table of names anew for
each module of the model. That took more than half of the time that loading the embedded model takes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_ASKED_AGAIN = ("GGUFReader", "get_tensor_name_map")
"""What transformers takes from the package each time; neither answer is changed by it."""


@contextmanager
def parsed_once() -> Iterator[None]:
    """Remember inside what the package gguf has answered; afterwards it is as it was."""
    import gguf  # noqa: PLC0415 - an extra

    package: Any = gguf
    own = {name: getattr(package, name) for name in _ASKED_AGAIN}
    try:
        for name, answer in own.items():
            setattr(package, name, cache(answer))
        yield
    finally:
        for name, answer in own.items():
            setattr(package, name, answer)
