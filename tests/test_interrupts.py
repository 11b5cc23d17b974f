"""Interrupts wait where something must not be left half done, and are raised right afterwards."""

import signal
import threading
from collections.abc import Iterator

import pytest

from owl_compress.interrupts import heed_no_more, heed_signals, is_interrupt, undisturbed

KINDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    before = {kind: signal.getsignal(kind) for kind in KINDS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


@pytest.mark.parametrize("kind", KINDS)
def test_what_ends_a_process_is_an_interrupt(kind: signal.Signals) -> None:
    heed_signals()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(kind)


def test_what_a_library_made_of_an_interrupt_is_one() -> None:
    heed_signals()
    assert not is_interrupt(ValueError("no shape"))
    assert is_interrupt(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert is_interrupt(ValueError("no shape"))
    heed_signals()
    assert not is_interrupt(ValueError("no shape"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_ignored_stays_ignored(kind: signal.Signals) -> None:
    signal.signal(kind, signal.SIG_IGN)
    heed_signals()
    signal.raise_signal(kind)


@pytest.mark.parametrize("heeds", [True, False])
def test_an_interrupt_waits_for_the_end(heeds: bool) -> None:
    if heeds:
        heed_signals()
    done = []

    def disturbed() -> None:
        with undisturbed(), undisturbed():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append("all")
        done.append("never")

    with pytest.raises(KeyboardInterrupt):
        disturbed()
    assert done == ["all"]
    with undisturbed():
        pass  # what came once is raised once
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_error_is_not_hidden_by_the_interrupt() -> None:
    with pytest.raises(ValueError, match="own"), undisturbed():
        raise ValueError("own")


def test_other_threads_are_left_alone() -> None:
    done = []

    def work() -> None:
        with undisturbed():
            done.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signal.default_int_handler]


def test_nothing_interrupts_an_ending_process() -> None:
    heed_signals()
    with heed_no_more():
        signal.raise_signal(signal.SIGTERM)
