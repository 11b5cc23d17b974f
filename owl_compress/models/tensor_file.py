"""Opening a safetensors file, so that what can go wrong is one of two things."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open


@contextmanager
def opened_tensors(path: Path) -> Iterator[Any]:
    """The tensors of a file, each read when it is asked for.

    The header is read first and the file is mapped by torch afterwards, which says in an error of its own
    that a file went away in between: this is told as any other file that is not there.

    Raises:
        OSError: there is no such file, or it may not be read.
        SafetensorError: it is no safetensors file, or not whole.
    """
    try:
        tensors = safe_open(path, framework="pt")
    except RuntimeError:
        path.open("rb").close()
        raise
    with tensors:
        yield tensors
