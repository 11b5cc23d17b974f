"""`eval --latency`: its answer, and what is refused before a model is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from owl_compress.errors import RequestError
from owl_compress.latency import check_two_of_four

EVAL = ("eval", "model", "--data", "other.txt", "--seq-len", "32", "--device", "cpu")


def test_latency_is_a_key_of_the_answer(done: Callable[..., Any]) -> None:
    options = ("--latency", "--prompt-len", "8", "--new-tokens", "2", "--batch-size", "3")
    (row,) = done(*EVAL, *options, "--json", "--quiet").json["latency"]
    assert row["shape"] == {"batch_size": 3, "prompt_len": 8, "new_tokens": 2}
    assert row["kernel"] == "dense"
    assert row["prefill_seconds"] > 0 < row["decode_seconds_per_token"]
    assert "decode, tokens per second" in done(*EVAL, *options).out
    assert "latency" not in done(*EVAL, "--json", "--quiet").json


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--kernel", "dense"), "--kernel says how --latency is measured: add --latency, or drop it"),
        (("--latency", "--kernel", "fast"), "unknown kernel 'fast'"),
        (("--latency", "--kernel", "semi-structured"), "needs a CUDA device and this is the cpu"),
        (("--latency", "--prompt-len", "127"), "make 159 positions, the model has 128"),
    ],
)
def test_refused_in_one_line(refused: Callable[..., str], options: tuple[str, ...], message: str) -> None:
    assert message in refused(*EVAL, *options)


def test_the_folder_must_be_2_of_4(done: Callable[..., Any], text_options: tuple[str, ...]) -> None:
    run = ("run", "model", *text_options, "--backend", "magnitude", "--quiet", "--allocator", "uniform")
    done(*run, "--nm", "2:4", "-o", "GOOD")
    done(*run, "--nm", "3:4", "-o", "BAD")
    check_two_of_four(Path("GOOD"))
    with pytest.raises(
        RequestError, match=r"layers\.0\.self_attn\.q_proj in BAD keeps more in \d+ of 256 gr"
    ):
        check_two_of_four(Path("BAD"))
