"""Whether the Hugging Face hub can be reached, asked first: nobody waits for retries that cannot help."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

SECONDS_TO_CONNECT = 5.0
"""So long a connection may take; where there is a network, it takes a tenth of a second."""

_PORTS = {"http": 80, "https": 443}
_SWITCH = "HF_HUB_OFFLINE"


@contextmanager
def hub_within_reach() -> Iterator[bool]:
    """Inside, a hub that cannot be reached is not asked: the cache answers, and what it lacks fails at once.

    Yields False for a hub out of reach; whoever switched it off himself is told so by the libraries. These
    would try for up to a minute, and all heed one switch, which is put back afterwards.
    """
    from huggingface_hub import constants  # noqa: PLC0415 - a command that needs no hub does not wait for it

    if getattr(constants, _SWITCH) or answers(constants.ENDPOINT):
        yield True
        return
    # `datasets` copies the switch when it is imported.
    places: list[Any] = [constants, *filter(None, [sys.modules.get("datasets.config")])]
    before = [getattr(place, _SWITCH) for place in places]
    try:
        for place in places:
            setattr(place, _SWITCH, True)
        yield False
    finally:
        for place, value in zip(places, before, strict=True):
            setattr(place, _SWITCH, value)


def answers(url: str, seconds: float = SECONDS_TO_CONNECT) -> bool:
    """Whether something accepts connections at `url`, or at the proxy that stands in front of it."""
    target = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(target.scheme) or proxies.get("all")
    if proxy and target.hostname and not proxy_bypass(target.hostname):
        target = urlsplit(proxy if "//" in proxy else f"//{proxy}", scheme="http")
    host, port = target.hostname, target.port or _PORTS.get(target.scheme, 443)
    accepted: list[bool] = []

    def connect() -> None:
        with suppress(OSError, ValueError), socket.create_connection((host, port), timeout=seconds):
            accepted.append(True)

    # A thread, since looking a name up knows no time limit.
    attempt = Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(seconds)
    return bool(accepted)
