"""lm-eval speaks on stdout, seeds generators and sets variables of the environment: here it may."""

import contextlib
import io
import logging
import os
import random
import warnings
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def undisturbed_process() -> Iterator[None]:
    """Inside, lm-eval is silent; random numbers, environment, logging and warnings are as before after it."""
    logger, environment = logging.getLogger("lm_eval"), dict(os.environ)
    level, python_state, numpy_state = logger.level, random.getstate(), np.random.get_state()  # noqa: NPY002
    is_in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch's own
    devices = [torch.cuda.current_device()] if is_in_use else []
    try:
        with (
            torch.random.fork_rng(devices),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            logger.setLevel(logging.CRITICAL)
            os.environ["DISABLE_MULTIPROC"] = (
                "1"  # of its bootstrap: a fork of a process with threads may hang
            )
            yield
    finally:
        logger.setLevel(level)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002 - the state that others share
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
