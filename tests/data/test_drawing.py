"""Random windows of long texts: drawn from random sections, so that not all of it is tokenised."""

import itertools
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from owl_compress.data import drawing
from owl_compress.data.text import Text
from owl_compress.data.tokens import tokenise
from owl_compress.data.windows import TokenWindows, sample_windows
from owl_compress.documents.provenance import CalibrationRecord

WORDS = " ".join(f"{i:06d}" for i in range(6000))  # 41999 characters; every number occurs once


def sampled(tokenizer: Any, text: str = WORDS, **options: Any) -> TokenWindows:
    chosen: dict[str, Any] = {"samples": 20, "seq_len": 25, "seed": 3, "bos": "never"} | options
    return sample_windows(tokenizer, Text("long.txt", (text,)), **chosen)


def places(tokenizer: PreTrainedTokenizerFast, windows: TokenWindows) -> list[int]:
    return [WORDS.index(tokenizer.decode(row)) for row in windows.ids.tolist()]


@pytest.fixture
def long_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "LARGEST_WHOLE", 10_000)


def test_windows_of_a_long_text_never_overlap_and_say_so(tokenizer: Any, long_from_here: None) -> None:
    windows = sampled(tokenizer)
    found = places(tokenizer, windows)
    assert found != sorted(found)  # in random order: the first few are a sample too
    starts = sorted(found)
    assert all(after - before >= 25 for before, after in itertools.pairwise(starts))
    assert windows.record.drawn_from == "sections"
    assert '"drawn_from":"sections"' in windows.record.model_dump_json()


def test_windows_of_a_long_text_lie_all_over_it(tokenizer: Any, long_from_here: None) -> None:
    found = [place for seed in range(40) for place in places(tokenizer, sampled(tokenizer, seed=seed))]
    tenths = [sum(10 * place // len(WORDS) == tenth for place in found) for tenth in range(10)]
    assert sum(tenths) == 800
    assert all(50 < count < 110 for count in tenths)  # 80 expected


def test_the_seed_decides_the_sections(tokenizer: Any, long_from_here: None) -> None:
    assert places(tokenizer, sampled(tokenizer)) == places(tokenizer, sampled(tokenizer))
    assert places(tokenizer, sampled(tokenizer)) != places(tokenizer, sampled(tokenizer, seed=4))


def test_only_the_sections_are_tokenised(
    tokenizer: Any, long_from_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    original = drawing.tokenise

    def noting(tokenizer: Any, text: str, bos: Any) -> Any:
        lengths.append(len(text))
        return original(tokenizer, text, bos)

    monkeypatch.setattr(drawing, "tokenise", noting)
    sampled(tokenizer, samples=3)
    assert len(lengths) == 3
    assert max(lengths) <= 8 * 25


def test_every_window_of_a_long_text_starts_with_its_bos(tokenizer: Any, long_from_here: None) -> None:
    windows = sampled(tokenizer, bos="every")
    assert (windows.ids == tokenizer.bos_token_id).nonzero()[:, 1].tolist() == [0] * 20
    first = sampled(tokenizer, bos="first", seed=5)
    assert (first.ids == tokenizer.bos_token_id).sum() <= 1


@pytest.mark.parametrize(
    "text",
    [
        WORDS[:9_000],  # not long
        WORDS[:12_000],  # long, but most of it is needed for twenty windows of 100
    ],
)
def test_other_texts_are_tokenised_whole_as_ever(tokenizer: Any, long_from_here: None, text: str) -> None:
    windows = sampled(tokenizer, text, seq_len=100)
    assert windows.record.drawn_from is None
    assert "drawn_from" not in windows.record.model_dump()
    assert len(windows) == 20


def test_sections_of_too_few_tokens_are_passed_over(
    tokenizer: Any, long_from_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def few_in_the_first_half(tokenizer: Any, text: str, bos: Any) -> Any:
        ids = tokenise(tokenizer, text, bos)
        return ids if WORDS.index(text) > len(WORDS) // 2 else ids[:5]

    monkeypatch.setattr(drawing, "tokenise", few_in_the_first_half)
    assert min(places(tokenizer, sampled(tokenizer))) > len(WORDS) // 2
    whole = sampled(tokenizer, samples=105)  # more than the half holds: the whole text is tokenised
    assert whole.record.drawn_from is None


def test_a_record_of_an_earlier_version_is_read(tokenizer: Any) -> None:
    record = sampled(tokenizer).record
    assert CalibrationRecord.model_validate(record.model_dump()) == record
