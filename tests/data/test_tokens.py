"""Token ids of long texts, piece by piece, are those of the text in one go."""

import random
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from owl_compress.data import tokens
from owl_compress.data.tokens import read_placed_tokens, read_tokens, tokenise

SPECIAL = ["<s>", "</s>", "<unk>"]
KINDS = ["bytes", "metaspace", "unigram", "wordpiece"]


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer: Any, *, is_fast: bool = True) -> None:
        self.tokenizer, self.is_fast, self.characters, self.calls = tokenizer, is_fast, 0, 0

    def __call__(self, text: str, **options: Any) -> Any:
        self.characters += len(text)
        self.calls += 1
        return self.tokenizer(text, **options)


class Noting:
    """A progress that notes what was tracked, and how many steps of how many were done."""

    def __init__(self) -> None:
        self.tracked: list[tuple[str, int, int]] = []

    def track(self, items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
        done = 0
        for item in items:
            yield item
            done += 1
        self.tracked.append((what, done, total))


@pytest.fixture(scope="module")
def long_prose() -> str:
    words = ("the", "owl", "counts", "Übermut,", "outliers", "in 1999", "layers.\n\n", "weights", "\t=")
    return " ".join(random.Random(0).choices(words, k=6000))


def trained(kind: str, text: str) -> PreTrainedTokenizerFast:
    """A tokenizer with a BOS in front and an EOS behind; all but the first look beyond a single word."""
    model, trainer, pieces, normalizer = {
        "metaspace": (
            models.BPE(unk_token="<unk>"),
            trainers.BpeTrainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False),
            pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
            None,
        ),
        "unigram": (
            models.Unigram(),
            trainers.UnigramTrainer(
                vocab_size=80, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
            ),
            pre_tokenizers.Metaspace(),
            None,
        ),
        "wordpiece": (
            models.WordPiece(unk_token="<unk>"),
            trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False),
            pre_tokenizers.BertPreTokenizer(),
            normalizers.BertNormalizer(),
        ),
    }[kind]
    backend = Tokenizer(model)
    backend.pre_tokenizer = pieces
    if normalizer:
        backend.normalizer = normalizer
    backend.train_from_iterator([text[start : start + 100] for start in range(0, 3000, 100)], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(name, backend.token_to_id(name)) for name in SPECIAL[:2]]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="module", params=KINDS)
def any_tokenizer(request: pytest.FixtureRequest, tokenizer: Any, long_prose: str) -> Any:
    return tokenizer if request.param == "bytes" else trained(request.param, long_prose)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "PIECE", 5_003)
    monkeypatch.setattr(tokens, "_OVERLAP", 400)


@pytest.mark.parametrize("bos", ["first", "never"])
def test_pieces_give_the_ids_of_the_whole(
    any_tokenizer: Any, long_prose: str, small_pieces: None, bos: Any
) -> None:
    counting = Counting(any_tokenizer)
    ids = read_tokens(counting, long_prose, bos)
    expected = any_tokenizer(long_prose, add_special_tokens=bos == "first", verbose=False).input_ids
    assert counting.calls > 5  # in pieces indeed
    assert counting.characters < 1.2 * len(long_prose)
    assert ids.tolist() == expected


@pytest.mark.parametrize("text", ["a" * 20_000, "ab" * 10_000, " " * 20_000])
def test_a_text_without_any_break_is_tokenised_right_too(
    any_tokenizer: Any, small_pieces: None, text: str
) -> None:
    assert (
        read_tokens(any_tokenizer, text, "never").tolist() == tokenise(any_tokenizer, text, "never").tolist()
    )


def test_no_more_is_tokenised_than_is_needed(tokenizer: Any, long_prose: str, small_pieces: None) -> None:
    counting = Counting(tokenizer)
    ids = read_tokens(counting, long_prose, "first", 100)
    assert counting.characters < 12_000
    assert ids[:100].tolist() == tokenizer(long_prose, verbose=False).input_ids[:100]


def test_a_tokenizer_that_tells_no_places_is_given_the_text_once(
    tokenizer: Any, long_prose: str, small_pieces: None
) -> None:
    counting = Counting(tokenizer, is_fast=False)
    assert read_tokens(counting, long_prose, "never", 100).tolist() == list(
        tokenizer(long_prose, add_special_tokens=False, verbose=False).input_ids
    )
    assert counting.calls == 1


def test_progress_is_told_piece_by_piece(tokenizer: Any, long_prose: str, small_pieces: None) -> None:
    noting = Noting()
    read_tokens(tokenizer, long_prose, "never", progress=noting)
    read_tokens(tokenizer, long_prose, "never", 20_000, progress=noting)
    (what, done, total), (_, some, of_some) = noting.tracked
    assert (what, done) == ("tokenising", total)
    assert total > 5
    assert some == of_some < total
    read_tokens(tokenizer, "short", "never", progress=noting)
    assert len(noting.tracked) == 2  # what takes no time shows no bar


@pytest.mark.parametrize("bos", ["first", "never"])
def test_every_character_belongs_to_one_token(any_tokenizer: Any, long_prose: str, bos: Any) -> None:
    text = long_prose[:3000].strip()
    placed = read_placed_tokens(any_tokenizer, text, bos)
    extents = placed.extents(text, [(place, place + 1) for place in range(len(placed.ids))])
    assert extents is not None
    assert extents.sum(dim=0).tolist() == [len(text), len(text.encode())]
    assert placed.extents(text, [(0, len(placed.ids))]).tolist() == [[len(text), len(text.encode())]]
