"""Which tokens are scored, counted one by one, and the text that they stand for, put together again."""

from typing import Any

import pytest

from owl_compress.data.text import Text
from owl_compress.data.tokens import Bos, read_placed_tokens
from owl_compress.data.windows import EvaluationOptions, TokenWindows, evaluation_windows
from owl_compress.errors import RequestError

MIXED = "Ein Übermütiger naïve owl: 梟は夜に鳴く 🦉🦉 counts\n\n" * 6


def cut(tokenizer: Any, text: str, **options: Any) -> TokenWindows:
    return evaluation_windows(tokenizer, Text("text", (text,)), **options)


def scored(windows: TokenWindows) -> list[list[int]]:
    """Ids of the scored tokens of each window."""
    ranges = windows.scoring.ranges.tolist()
    return [row[first:stop].tolist() for row, (first, stop) in zip(windows.ids, ranges, strict=True)]


def flat(lists: list[list[int]]) -> list[int]:
    return [one for each in lists for one in each]


@pytest.mark.parametrize("bos", ["first", "never", "every"])
@pytest.mark.parametrize("n_characters", [15, 16, 17, 40, 57, 60])
@pytest.mark.parametrize("stride", [1, 2, 5, 14, 15])
def test_with_a_stride_every_token_is_scored_once_and_in_order(
    tokenizer: Any, prose: str, bos: Bos, n_characters: int, stride: int
) -> None:
    text = prose[:n_characters]
    ids = tokenizer(text, add_special_tokens=bos == "first").input_ids
    if len(ids) < 16 - (bos == "every"):
        with pytest.raises(RequestError, match="is too short"):
            cut(tokenizer, text, seq_len=16, bos=bos, stride=stride)
        return
    windows = cut(tokenizer, text, seq_len=16, bos=bos, stride=stride)
    assert flat(scored(windows)) == (ids if bos == "every" else ids[1:])
    for row, (first, stop) in zip(windows.ids[1:], windows.scoring.ranges[1:].tolist(), strict=True):
        assert first == 16 - stride  # that much is context
        assert row[:1].tolist() == [tokenizer.bos_token_id] or bos != "every"
        assert first < stop <= 16
    assert windows.scoring.stride == stride


def test_each_window_is_a_piece_of_the_text(tokenizer: Any, prose: str) -> None:
    ids = tokenizer(prose[:50]).input_ids
    windows = cut(tokenizer, prose[:50], seq_len=16, bos="first", stride=6)
    for number, (row, (_, stop)) in enumerate(
        zip(windows.ids.tolist(), windows.scoring.ranges.tolist(), strict=True)
    ):
        assert row[:stop] == ids[number * 6 : number * 6 + stop]
    assert number * 6 + stop == len(ids)


def test_the_first_windows_are_those_of_all(tokenizer: Any, prose: str) -> None:
    every = cut(tokenizer, prose[:90], seq_len=16, bos="first", stride=6)
    some = cut(tokenizer, prose[:90], seq_len=16, bos="first", stride=6, max_windows=3)
    assert some.ids.tolist() == every.ids[:3].tolist() == every.first(3).ids.tolist()
    assert scored(some) == scored(every)[:3] == scored(every.first(3))
    assert (some.scoring.n_bytes, some.scoring.n_tokens) == (15 + 6 + 6, 15 + 6 + 6)
    assert every.first(3).scoring.n_bytes == 27


def test_without_a_stride_all_but_the_first_of_each_window_is_scored(tokenizer: Any, prose: str) -> None:
    windows = cut(tokenizer, prose[:50], seq_len=16, bos="first")
    assert scored(windows) == [row[1:] for row in windows.ids.tolist()]
    assert windows.scoring.stride is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 16}, "stride 16 is not below the 16 tokens of a window.*set --stride to 15 at most"),
        ({"stride": 0}, "a stride of 0 tokens goes nowhere: set --stride to at least 1"),
        ({"stride": -3}, "a stride of -3 tokens goes nowhere"),
    ],
)
def test_strides_that_cannot_be_meant(
    tokenizer: Any, prose: str, options: dict[str, int], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        cut(tokenizer, prose, seq_len=16, bos="first", **options)
    if options["stride"] < 1:
        with pytest.raises(RequestError, match=message):
            EvaluationOptions("text.txt", **options)


@pytest.mark.parametrize("stride", [None, 5])
@pytest.mark.parametrize("bos", ["first", "never", "every"])
def test_one_byte_a_token_counts_bytes_as_it_counts_tokens(
    tokenizer: Any, prose: str, bos: Bos, stride: int | None
) -> None:
    windows = cut(tokenizer, prose, seq_len=16, bos=bos, stride=stride)
    assert windows.scoring.n_bytes == windows.scoring.n_characters == windows.scoring.n_tokens


@pytest.mark.parametrize("bos", ["first", "never", "every"])
def test_characters_of_several_bytes(tokenizer: Any, bos: Bos) -> None:
    windows = cut(tokenizer, MIXED, seq_len=16, bos=bos, stride=3)
    unscored = MIXED[:1] if bos == "never" else ""  # the first token, which nothing predicts
    assert windows.scoring.n_characters == len(MIXED) - len(unscored)
    assert windows.scoring.n_bytes == len(MIXED.encode()) - len(unscored.encode())


def test_a_character_that_windows_share_counts_once(tokenizer: Any) -> None:
    text = "ab🦉cd"  # bytes: a b 1 2 3 4 c d; windows of four, the first token of each unscored
    windows = cut(tokenizer, text, seq_len=4, bos="never")
    assert windows.scoring.extents is not None
    assert windows.scoring.extents.tolist() == [[2, 5], [2, 2]]  # b and the owl; then two bytes of it, c, d


def test_what_is_cut_off_does_not_count(tokenizer: Any, prose: str) -> None:
    windows = cut(tokenizer, prose[:50], seq_len=16, bos="never")
    assert windows.scoring.n_bytes == 3 * 15
    assert cut(tokenizer, prose, seq_len=16, bos="never", max_windows=2).scoring.n_bytes == 2 * 15


def test_a_tokenizer_that_tells_no_places_counts_no_text(tokenizer: Any, prose: str) -> None:
    class Slow:
        is_fast, bos_token_id = False, tokenizer.bos_token_id

        def __call__(self, text: str, **options: Any) -> Any:
            return tokenizer(text, **options)

    windows = cut(Slow(), prose, seq_len=16, bos="first")
    assert windows.ids.tolist() == cut(tokenizer, prose, seq_len=16, bos="first").ids.tolist()
    assert (windows.scoring.n_characters, windows.scoring.n_bytes) == (None, None)


def test_random_windows_are_scored_whole(make_windows: Any) -> None:
    windows = make_windows(3, 24)
    assert windows.scoring.ranges.tolist() == [[1, 24]] * 3
    assert windows.scoring.n_bytes is None


def test_places_of_a_text_read_in_pieces_are_those_of_the_whole(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = MIXED * 200
    whole = read_placed_tokens(tokenizer, text, "first")
    monkeypatch.setattr("owl_compress.data.tokens.PIECE", 5_003)
    monkeypatch.setattr("owl_compress.data.tokens._OVERLAP", 400)
    pieces = read_placed_tokens(tokenizer, text, "first")
    assert pieces.ids.tolist() == whole.ids.tolist()
    assert pieces.ends is not None
    assert whole.ends is not None
    assert pieces.ends.tolist() == whole.ends.tolist()
    assert whole.ends[-1] == len(text)
