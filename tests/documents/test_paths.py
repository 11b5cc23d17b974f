"""Paths as users write them: spelled out, or refused in one line."""

import os
from pathlib import Path

import pytest

from owl_compress.documents.paths import given_path
from owl_compress.errors import RequestError


def test_home_is_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/owl")
    assert given_path("~/models") == Path("/home/owl/models")
    assert given_path(Path("models/~")) == Path("models/~")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "'' is no path"),
        ("a\0b", r"'a\x00b' has a NUL in it"),
        ("~nosuchuser/x", "'~nosuchuser/x': nobody knows where '~nosuchuser' is"),
        ("a/" + "x" * 256, "has a name of 256 bytes, and no more than 255"),
        ("ü" * 128, "has a name of 256 bytes"),
        (os.fsdecode(b"model\xff"), r"'model\udcff' is not valid UTF-8"),
    ],
)
def test_what_cannot_be_a_path_is_refused(path: str, message: str) -> None:
    with pytest.raises(RequestError) as refused:
        given_path(path)
    assert message in str(refused.value)
