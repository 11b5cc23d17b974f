"""Windows held apart: nothing of them is in the windows that are taken already."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from owl_compress.data.apart import check_apart, windows_apart
from owl_compress.data.text import Text
from owl_compress.data.windows import TokenWindows, sample_windows
from owl_compress.errors import RequestError


def sampled(tokenizer: PreTrainedTokenizerFast, text: Text, samples: int, sampling: str) -> TokenWindows:
    return sample_windows(
        tokenizer, text, samples=samples, seq_len=100, sampling=sampling, seed=3, bos="never"
    )


def apart(
    tokenizer: PreTrainedTokenizerFast, text: Text, taken: list[TokenWindows], samples: int, seed: int = 0
) -> TokenWindows:
    return windows_apart(tokenizer, text, taken, samples=samples, seq_len=60, seed=seed, bos="never")


def places(text: Text, windows: TokenWindows, tokenizer: PreTrainedTokenizerFast) -> list[range]:
    """Where in the text the windows lie: no piece of it occurs twice."""
    found = []
    for ids in windows.ids:
        piece = tokenizer.decode(ids)
        start = text.joined.index(piece)
        found.append(range(start, start + len(piece)))
    return found


@pytest.mark.parametrize("sampling", ["first", "random"])
def test_no_window_shares_a_run_of_tokens_with_those_taken(
    sampling: str, prose: str, tokenizer_without_bos: PreTrainedTokenizerFast
) -> None:
    text = Text("prose", (prose,))
    taken = sampled(tokenizer_without_bos, text, 6, sampling)
    found = apart(tokenizer_without_bos, text, [taken], 4)
    assert found.ids.shape == (4, 60)
    assert found.record.sequences == 4
    shared = 31  # tokens, which are bytes here: one less than what counts as an overlap
    for own in places(text, found, tokenizer_without_bos):
        for other in places(text, taken, tokenizer_without_bos):
            assert len(range(max(own.start, other.start), min(own.stop, other.stop))) <= shared
    check_apart(taken, found)


def test_windows_shorter_than_a_run_are_held_apart_too(
    prose: str, tokenizer_without_bos: PreTrainedTokenizerFast
) -> None:
    text = Text("prose", (prose,))
    taken = sampled(tokenizer_without_bos, text, 10, "first")  # half of the text
    found = windows_apart(tokenizer_without_bos, text, [taken], samples=30, seq_len=20, seed=0, bos="never")
    for own in places(text, found, tokenizer_without_bos):
        for other in places(text, taken, tokenizer_without_bos):
            assert not (other.start <= own.start and own.stop <= other.stop)
    check_apart(taken, found)
    inside = sampled(tokenizer_without_bos, text, 1, "first")
    inside = TokenWindows(inside.ids[:, 40:60], inside.record.model_copy(update={"seq_len": 20}))
    with pytest.raises(RequestError, match="overlaps"):
        check_apart(taken, inside)


def test_the_same_seed_gives_the_same_windows_and_another_others(
    prose: str, tokenizer_without_bos: PreTrainedTokenizerFast
) -> None:
    text = Text("prose", (prose,))
    one, two, other = (apart(tokenizer_without_bos, text, [], 4, seed) for seed in (0, 0, 1))
    assert one.record == two.record
    assert torch.equal(one.ids, two.ids)
    assert not torch.equal(one.ids, other.ids)


def test_a_text_of_which_nothing_is_left_is_refused(
    prose: str, tokenizer_without_bos: PreTrainedTokenizerFast
) -> None:
    text = Text("prose", (prose,))
    taken = sampled(tokenizer_without_bos, text, 19, "first")
    with pytest.raises(RequestError, match=r"prose has too little text beside .* fewer --samples"):
        apart(tokenizer_without_bos, text, [taken], 4)


@pytest.mark.parametrize(
    ("words", "remedy"),
    [("some words", "a smaller --damage-len"), ("word " * 30, "--damage-samples 2 at most")],
)
def test_a_text_too_short_for_the_windows_names_their_own_options(
    words: str, remedy: str, tokenizer_without_bos: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(RequestError, match=f"too short: .* give more text, or {remedy}"):
        apart(tokenizer_without_bos, Text("short", (words,)), [], 4)


def test_windows_that_overlap_are_told_by_number(
    prose: str, tokenizer_without_bos: PreTrainedTokenizerFast
) -> None:
    text = Text("prose", (prose,))
    taken = sampled(tokenizer_without_bos, text, 3, "first")
    with pytest.raises(RequestError, match=r"window 0 of prose.*overlaps"):
        check_apart(taken, sampled(tokenizer_without_bos, text, 2, "first"))
    check_apart(None, taken)
