"""A hub that cannot be reached is not asked, and the switch that sees to it is put back."""

import socket
import sys
from typing import Any

import pytest
from huggingface_hub import constants

from owl_compress import reach
from owl_compress.data.text import load_text
from owl_compress.errors import RequestError
from owl_compress.reach import answers, hub_within_reach


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "getproxies", dict)


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(reach, "answers", lambda url: False)


def test_what_accepts_connections_answers(no_proxy: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert answers(f"http://127.0.0.1:{port}/path")
    assert not answers(f"http://127.0.0.1:{port}/path", seconds=1)


def test_a_proxy_answers_for_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        monkeypatch.setattr(reach, "getproxies", lambda: {"https": address})
        assert answers("https://hub.invalid")


def test_the_switch_is_on_inside_alone_even_after_an_error(unreachable: None) -> None:
    inside = hub_within_reach()
    assert inside.__enter__() is False
    assert constants.HF_HUB_OFFLINE is True
    assert not inside.__exit__(KeyError, KeyError(), None)
    assert constants.HF_HUB_OFFLINE is False


def test_a_data_set_out_of_reach_is_refused_without_retries(
    unreachable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked: list[bool] = []

    def load(*arguments: Any, **options: Any) -> Any:
        asked.append(sys.modules["datasets.config"].HF_HUB_OFFLINE)
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(RequestError, match=r"hub cannot be reached, and it is not in the cache.*'builtin'"):
        load_text("owner/name", purpose="calibration")
    assert asked == [True]
