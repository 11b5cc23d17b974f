"""The package compressed-tensors, an extra: whether it is there, and new enough to read with."""

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from torch import distributed

from owl_compress.errors import RequestError

PACKAGE = "compressed-tensors"
_MODULE = "compressed_tensors"
INSTALL = "pip install 'owl-compress[quant]'"
_OLDEST = (0, 20)
"""The first version whose decompression leaves ordinary linears behind."""


def require_package() -> None:
    """Refuse to go on without compressed-tensors.

    Raises:
        RequestError: it is not installed.
    """
    if importlib.util.find_spec(_MODULE) is None:
        raise RequestError(
            f"a packed checkpoint needs the package {PACKAGE}: {INSTALL}, or use --format dense"
        )


def require_current_package() -> None:
    """Refuse to read packed weights with a package that does not leave ordinary ones behind.

    Raises:
        RequestError: it is missing or too old.
    """
    require_package()
    installed = version(PACKAGE)
    if tuple(int(part) for part in re.findall(r"\d+", installed)[:2]) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise RequestError(
            f"packed weights are read with {PACKAGE} {oldest} or newer, not {installed}: {INSTALL}"
        )


@contextmanager
def quiet_package() -> Iterator[None]:
    """Hold back what the package says to programmers, through loguru, which heeds no levels of logging."""
    if importlib.util.find_spec("loguru") is None:
        yield
        return
    from loguru import logger  # noqa: PLC0415 - comes with the package, and only with it

    logger.disable(_MODULE)
    try:
        yield
    finally:
        logger.enable(_MODULE)


@contextmanager
def package_in_this_process() -> Iterator[None]:
    """Have the package do all of its work here.

    Where processes have joined a group it divides the linears of a model among them, and waits for each: for
    ever, where only the leader looks at how a model would be read.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        yield
        return
    from compressed_tensors.compressors.model_compressors import (  # noqa: PLC0415 - optional
        model_compressor,
    )

    asked = model_compressor.is_distributed
    model_compressor.is_distributed = lambda: False
    try:
        yield
    finally:
        model_compressor.is_distributed = asked
