"""Named protocols decide what is left open, and refuse what says something else."""

from typing import Any

import pytest

from owl_compress.data.windows import EvaluationOptions
from owl_compress.documents.protocols import PROTOCOLS, with_protocol
from owl_compress.errors import RequestError


def test_the_papers_protocol_is_the_published_one() -> None:
    options = EvaluationOptions("wikitext2", protocol="paper")
    assert (options.seq_len, options.bos, options.stride, options.max_windows) == (2048, "first", None, None)
    assert PROTOCOLS["paper"].text


def test_what_it_says_anyway_may_be_said() -> None:
    options = EvaluationOptions("wikitext2", protocol="paper", seq_len=2048, bos="first")
    assert options == EvaluationOptions("wikitext2", protocol="paper")


def test_without_a_protocol_nothing_is_decided() -> None:
    assert with_protocol({"seq_len": 64}) == {"seq_len": 64}
    assert with_protocol({"protocol": None, "bos": "every"}) == {"protocol": None, "bos": "every"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seq_len": 512}, "protocol paper stands for --seq-len 2048, and seq-len is 512: drop it, or the"),
        ({"bos": "every"}, "protocol paper stands for --bos first, and bos is every"),
        ({"stride": 512}, "protocol paper stands for no --stride, and stride is 512"),
        ({"max_windows": 4}, "protocol paper stands for no --max-windows, and max-windows is 4"),
        ({"chat_template": True}, "protocol paper stands for no --chat-template"),
        ({"source": "text.txt"}, "protocol paper stands for --data wikitext2, and data is text.txt"),
        ({"protocol": "papers"}, "unknown protocol 'papers': did you mean 'paper'?"),
    ],
)
def test_what_says_something_else_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        EvaluationOptions(**{"source": "wikitext2", "protocol": "paper"} | given)
