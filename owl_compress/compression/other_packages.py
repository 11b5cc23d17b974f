"""Letting a package of others do its work: without its talk, and without a trace in this process."""

import gc
import io
import logging
import random
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from tempfile import TemporaryDirectory

import numpy as np
import torch


@contextmanager
def silenced() -> Iterator[None]:
    """Keep what the package prints off our streams, its loggers quiet, and its folder of logs out of ours."""
    disabled = logging.root.manager.disable
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        stack.enter_context(chdir(stack.enter_context(TemporaryDirectory())))
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


@contextmanager
def random_states_kept(device: torch.device) -> Iterator[None]:
    """Give the generators of Python, numpy and torch back the states that a package's seeding overwrites."""
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that is overwritten
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)  # noqa: NPY002


@contextmanager
def only_new_garbage_collected() -> Iterator[None]:
    """Spare a package that calls the collector time and again the search through all that was there."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
