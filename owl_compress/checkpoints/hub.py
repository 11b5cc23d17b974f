"""Keeping transformers and the hub quiet, and saying in one line what their exceptions mean."""

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import transformers
from huggingface_hub import errors as hub
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from transformers.utils import logging as transformers_logging

from owl_compress.errors import RequestError

_MESSAGE_LENGTH = 240
_NO_CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"

PICKLED = (
    "has no safetensors weights, only pickled ones, which can run code while they load: "
    "convert them, or pass --allow-pickle if you trust their author"
)
_LOCAL_REMEDY = "check the spelling, or name a local checkpoint folder or .gguf file"
_HUB_ERRORS: tuple[tuple[type[BaseException], str], ...] = (
    (
        hub.GatedRepoError,
        "access to it on the hub must be granted first: accept its terms, then run hf auth login",
    ),
    (hub.RepositoryNotFoundError, f"the hub has no such model (or it is private): {_LOCAL_REMEDY}"),
    (hub.RevisionNotFoundError, "the hub has no such revision of it: check --revision"),
    (hub.HFValidationError, f"neither a path that exists nor a valid hub id: {_LOCAL_REMEDY}"),
    (hub.LocalEntryNotFoundError, f"no such folder, and the hub cannot be reached: {_LOCAL_REMEDY}"),
    (hub.OfflineModeIsEnabled, f"no such folder, and hub access is switched off: {_LOCAL_REMEDY}"),
)
_PHRASES = (
    (
        "trust_remote_code",
        "it runs code from its own repository: read that code, then pass --trust-remote-code if you trust it",
    ),
    ("connect to", f"the hub cannot be reached: {_LOCAL_REMEDY}"),
    ("does not appear to have a file named model.safetensors", PICKLED),
    (
        "does not appear to have a file named config.json",
        f"the hub repository has no config.json: {_LOCAL_REMEDY}",
    ),
    ("is not a valid JSON file", "its config.json is not whole JSON: fetch it again"),
    ("Should have a `model_type` key", "its config.json names no model_type: fetch it again"),
    (
        "does not recognize this architecture",
        f"transformers {transformers.__version__} does not know its architecture: upgrade transformers",
    ),
    ("not enough memory", "not enough memory to load it: choose a smaller dtype"),
    ("out of memory", "not enough memory to load it: choose a smaller dtype"),
)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hold transformers' log below error and its progress bars off; restore the user's settings afterwards.

    Bars of downloads stay as they are: those take minutes. Also keeps transformers from asking a public
    service to convert a pickled hub repository, which `from_pretrained` would do unasked.
    """
    verbosity, hub_verbosity = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    bars_on = transformers_logging.is_progress_bar_enabled()
    downloads_shown = not are_progress_bars_disabled()
    conversion = os.environ.get(_NO_CONVERSION)
    os.environ[_NO_CONVERSION] = "1"
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    _show_downloads(shown=downloads_shown)  # transformers' switch moves the hub's along
    try:
        yield
    finally:
        os.environ.pop(_NO_CONVERSION)
        if conversion is not None:
            os.environ[_NO_CONVERSION] = conversion
        transformers_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars_on:
            transformers_logging.enable_progress_bar()
        _show_downloads(shown=downloads_shown)


@contextmanager
def quiet_bars() -> Iterator[None]:
    """Hold the progress bars of a dequantisation off, which heed none of transformers' switches."""
    with redirect_stderr(io.StringIO()):
        yield


def _show_downloads(*, shown: bool) -> None:
    if are_progress_bars_disabled() == shown:
        (enable_progress_bars if shown else disable_progress_bars)()


@contextmanager
def quietly_explained(source: str) -> Iterator[None]:
    """Turn any failure of transformers to load `source` into one line; the original stays as its cause."""
    try:
        with quiet_transformers():
            yield
    except RequestError:
        raise
    except MemoryError as error:
        raise RequestError(f"not enough memory to load model {source!r}: choose a smaller dtype") from error
    except Exception as error:
        raise RequestError(f"model {source!r}: {_explanation(error)}") from error


def _explanation(error: BaseException) -> str:
    """What went wrong and the remedy, recognised by the exception's kind or by transformers' words."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for kind, meaning in _HUB_ERRORS:
        if any(isinstance(link, kind) for link in chain):
            return meaning
    text = " ".join(str(error).split())
    for words, meaning in _PHRASES:
        if words in text:
            return meaning
    shown = text if len(text) <= _MESSAGE_LENGTH else text[:_MESSAGE_LENGTH] + "…"
    return (
        f"transformers {transformers.__version__} cannot load it ({type(error).__name__}: {shown}): check "
        "its config.json, or try another version of transformers"
    )
