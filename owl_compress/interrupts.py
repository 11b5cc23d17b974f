"""What ends a program from outside: heeded like Ctrl-C, and held back where nothing may be left half done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class _Held:
    """How many blocks hold signals back at the moment, how many signals came meanwhile, and whether one was
    raised.
    """

    blocks = 0
    signals = 0
    is_raised = False


def heed_signals() -> None:
    """Have whatever ends a process early raise KeyboardInterrupt, so that temporary files go with it.

    A batch system sends SIGTERM, a terminal that is closed SIGHUP. What whoever started the process has it
    ignore, as nohup does, stays ignored.
    """
    _Held.is_raised = False
    for kind in _ENDING:
        if signal.getsignal(kind) is not signal.SIG_IGN:
            signal.signal(kind, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of handlers
    if _Held.blocks:
        _Held.signals += 1
        return
    _Held.is_raised = True
    raise KeyboardInterrupt


def is_interrupt(error: BaseException) -> bool:
    """Whether an error is an interrupt, or what a library made of one that came while its C code ran."""
    return isinstance(error, KeyboardInterrupt) or (_Held.is_raised and isinstance(error, Exception))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold interrupts back until the block is done; then one of those that came is raised.

    For the few moments in which a file takes its place or a temporary one goes. In other threads than the
    main one there are no interrupts to hold back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Held.blocks += 1
    is_plain = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_plain:  # nobody called `heed_signals`: a notebook, a script
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        if is_plain:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        _Held.blocks -= 1
        came = _Held.signals if not _Held.blocks else 0
        if came:
            _Held.signals = 0
    if came:
        raise KeyboardInterrupt


@contextmanager
def heed_no_more() -> Iterator[None]:
    """Leave signals alone from here on: all is done, and what is left is to end."""
    _Held.blocks += 1
    try:
        yield
    finally:
        _Held.blocks -= 1
        _Held.signals = 0
