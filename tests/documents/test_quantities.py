"""Sizes and times as people write them."""

import pytest

from owl_compress.documents.quantities import parsed_bytes, parsed_seconds, told_apart


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("300MB", 300_000_000), ("0.3GB", 300_000_000), ("250MiB", 250 * 2**20), ("250mib", 250 * 2**20),
        ("123456", 123_456), ("1.5 kB", 1500), (" 2TB ", 2 * 10**12), ("1KiB", 1024), ("7B", 7),
        (".5GiB", 2**29), ("3e8", 300_000_000), ("1.0000000001GB", 1_000_000_000),
    ],
)  # fmt: skip
def test_sizes(text: str, n_bytes: int) -> None:
    assert parsed_bytes(text) == n_bytes


@pytest.mark.parametrize(
    "text", ["", "MB", "-1MB", "0", "0.1", "nan", "inf", "1e400", "300XB", "3 0MB", "1,5GB", "9e18B1"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"size such as|no unit|above 0"):
        parsed_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0.120", 0.12), ("120ms", 0.12), ("2s", 2.0), ("5 us", 5e-6), ("1e-3", 1e-3)]
)
def test_times(text: str, seconds: float) -> None:
    assert parsed_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0ms", "-1", "nan", "infs", "1h", "1m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"time such as|no unit|above 0"):
        parsed_seconds(text)


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [(0.3, 0.25, ("0.3", "0.25")), (0.09999999, 0.1, ("0.09999999", "0.1")), (0.5, 0.5, ("0.5", "0.5"))],
)
def test_two_numbers_are_told_apart(one: float, other: float, told: tuple[str, str]) -> None:
    assert told_apart(one, other) == told
