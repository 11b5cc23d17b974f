import hashlib
import itertools
import struct
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from owl_compress.data.text import Text
from owl_compress.data.tokens import tokenise
from owl_compress.data.windows import TokenWindows, evaluation_windows, resolve_bos, sample_windows
from owl_compress.errors import RequestError


def decoded(tokenizer: PreTrainedTokenizerFast, windows: TokenWindows) -> list[str]:
    return [tokenizer.decode(row, skip_special_tokens=True) for row in windows.ids.tolist()]


def places(tokenizer: PreTrainedTokenizerFast, windows: TokenWindows, text: str) -> list[int]:
    """Where in `text` each window lies; every piece of it is unique."""
    pieces = decoded(tokenizer, windows)
    assert all(text.count(piece) == 1 for piece in pieces)
    return [text.index(piece) for piece in pieces]


# --- first ---


def test_first_windows_are_what_the_tokenizer_itself_gives(tokenizer: Any, prose: str) -> None:
    windows = sample_windows(
        tokenizer, Text("a", (prose,)), samples=3, seq_len=50, sampling="first", bos="first"
    )
    expected = tokenizer(prose, verbose=False).input_ids
    assert windows.ids.flatten().tolist() == expected[:150]
    assert windows.ids[0, 0] == tokenizer.bos_token_id
    assert (windows.ids == tokenizer.bos_token_id).sum() == 1


def test_bos_never_leaves_plain_text(tokenizer: Any, prose: str) -> None:
    windows = sample_windows(
        tokenizer, Text("a", (prose,)), samples=3, seq_len=50, sampling="first", bos="never"
    )
    assert "".join(decoded(tokenizer, windows)) == prose[:150]
    assert not (windows.ids == tokenizer.bos_token_id).any()


def test_bos_every_starts_each_window_and_loses_no_text(tokenizer: Any, prose: str) -> None:
    windows = sample_windows(
        tokenizer, Text("a", (prose,)), samples=3, seq_len=50, sampling="first", bos="every"
    )
    assert windows.ids.shape == (3, 50)
    assert (windows.ids[:, 0] == tokenizer.bos_token_id).all()
    assert "".join(decoded(tokenizer, windows)) == prose[: 3 * 49]


def test_documents_are_joined_before_they_are_tokenised(tokenizer: Any) -> None:
    text = Text("a", ("one", "two", "three"), separator="--")
    windows = sample_windows(tokenizer, text, samples=1, seq_len=15, sampling="first", bos="never")
    assert decoded(tokenizer, windows) == ["one--two--three"]


def test_bos_every_needs_a_bos(tokenizer_without_bos: Any, prose: str) -> None:
    with pytest.raises(RequestError, match="no BOS token"):
        sample_windows(tokenizer_without_bos, Text("a", (prose,)), samples=1, seq_len=50, bos="every")
    windows = sample_windows(tokenizer_without_bos, Text("a", (prose,)), samples=1, seq_len=50, bos="first")
    assert len(windows) == 1


def test_a_long_text_draws_no_warning(tokenizer: Any, prose: str, caplog: pytest.LogCaptureFixture) -> None:
    assert len(prose) > tokenizer.model_max_length
    tokenise(tokenizer, prose, "first")
    assert "longer than" not in caplog.text


# --- random ---


@pytest.mark.parametrize("bos", ["first", "never", "every"])
@pytest.mark.parametrize("samples", [1, 7, 39])
def test_random_windows_lie_in_the_text_and_never_overlap(
    tokenizer: Any, prose: str, bos: Any, samples: int
) -> None:
    windows = sample_windows(tokenizer, Text("a", (prose,)), samples=samples, seq_len=50, seed=3, bos=bos)
    starts = sorted(places(tokenizer, windows, prose))
    assert all(after - before >= 49 for before, after in itertools.pairwise(starts))


def test_random_windows_follow_the_seed(tokenizer: Any, prose: str) -> None:
    def ids(seed: int) -> torch.Tensor:
        return sample_windows(
            tokenizer, Text("a", (prose,)), samples=5, seq_len=50, seed=seed, bos="never"
        ).ids

    assert torch.equal(ids(0), ids(0))
    assert not torch.equal(ids(0), ids(1))


def test_all_arrangements_of_random_windows_are_equally_likely(tokenizer: Any) -> None:
    # Two windows of 3 in 8 tokens: starts (0,3) (0,4) (0,5) (1,4) (1,5) (2,5), in either order.
    text = Text("a", ("abcdefgh",))
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(1200):
        windows = sample_windows(tokenizer, text, samples=2, seq_len=3, seed=seed, bos="never")
        starts = tuple(places(tokenizer, windows, "abcdefgh"))
        counts[starts] = counts.get(starts, 0) + 1
    one_order = {(0, 3), (0, 4), (0, 5), (1, 4), (1, 5), (2, 5)}
    assert set(counts) == one_order | {(b, a) for a, b in one_order}
    assert all(60 < count < 140 for count in counts.values())  # 100 expected, standard deviation 9.6


def test_windows_may_fill_the_text_exactly(tokenizer: Any, prose: str) -> None:
    text = Text("a", (prose,))
    windows = sample_windows(tokenizer, text, samples=40, seq_len=50, bos="never")
    assert sorted(places(tokenizer, windows, prose)) == list(range(0, 2000, 50))


# --- by document ---


def test_random_windows_by_document_lie_inside_long_documents(tokenizer: Any) -> None:
    documents = tuple(chr(ord("a") + i) * length for i, length in enumerate([10, 60, 200, 50, 51, 90]))
    text = Text("c4", documents, by_document=True)
    windows = sample_windows(tokenizer, text, samples=4, seq_len=50, bos="never")
    letters = [set(piece) for piece in decoded(tokenizer, windows)]
    assert all(len(found) == 1 for found in letters)
    assert {found.pop() for found in letters} == {"b", "c", "e", "f"}  # more than 50 tokens each, none twice


def test_windows_by_document_vary_in_place_and_follow_the_seed(tokenizer: Any, prose: str) -> None:
    text = Text("c4", (prose,), by_document=True)
    runs = [
        sample_windows(tokenizer, text, samples=1, seq_len=50, seed=seed, bos="every")
        for seed in (0, 0, 1, 2, 3)
    ]
    starts = [places(tokenizer, run, prose)[0] for run in runs]
    assert starts[0] == starts[1]
    assert len(set(starts)) > 2
    assert all(run.ids[0, 0] == tokenizer.bos_token_id for run in runs)


def test_too_few_long_documents_is_an_error_with_the_number_that_fits(tokenizer: Any) -> None:
    text = Text("c4", ("a" * 100, "b" * 100, "c" * 20), by_document=True)
    with pytest.raises(RequestError, match=r"2 of its 3 documents are: set --samples 2 at most"):
        sample_windows(tokenizer, text, samples=3, seq_len=50, bos="never")


def test_first_windows_of_documents_come_from_the_joined_text(tokenizer: Any) -> None:
    text = Text("c4", ("aaa", "bbb"), separator=" ", by_document=True)
    windows = sample_windows(tokenizer, text, samples=1, seq_len=7, sampling="first", bos="never")
    assert decoded(tokenizer, windows) == ["aaa bbb"]


# --- too little, out of range ---


@pytest.mark.parametrize("sampling", ["first", "random"])
def test_too_little_text_says_how_much_there_is_and_what_fits(tokenizer: Any, sampling: Any) -> None:
    text = Text("notes.txt", ("x" * 120,))
    with pytest.raises(
        RequestError, match=r"notes.txt .* 120 tokens .* 4 windows of 50 need 200.* --samples 2 at most"
    ):
        sample_windows(tokenizer, text, samples=4, seq_len=50, sampling=sampling, bos="never")
    with pytest.raises(RequestError, match=r"120 tokens .* need 1000: .* smaller --seq-len"):
        sample_windows(tokenizer, text, samples=2, seq_len=500, sampling=sampling, bos="never")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "0 samples are too few"),
        ({"seq_len": 1}, "below 2"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"sampling": "last"}, "unknown sampling 'last'"),
        ({"bos": "always"}, "unknown bos 'always'"),
    ],
)
def test_numbers_and_names_out_of_range_are_refused(
    tokenizer: Any, prose: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        sample_windows(tokenizer, Text("a", (prose,)), **{"samples": 2, "seq_len": 50} | options)


# --- the record and the batches ---


def test_the_record_tells_source_shape_and_the_hash_of_the_ids(tokenizer: Any, prose: str) -> None:
    windows = sample_windows(tokenizer, Text("a.txt", (prose,)), samples=4, seq_len=50, seed=5, bos="first")
    flat = [token for row in windows.ids.tolist() for token in row]
    assert windows.record.token_ids_sha256 == hashlib.sha256(struct.pack(f"<{len(flat)}q", *flat)).hexdigest()
    assert windows.record.model_dump(exclude={"token_ids_sha256"}) == {
        "source": "a.txt",
        "sequences": 4,
        "seq_len": 50,
        "sampling": "random",
        "seed": 5,
        "bos": "first",
    }


def test_batches_hold_all_windows_in_order(tokenizer: Any, prose: str) -> None:
    windows = sample_windows(tokenizer, Text("a", (prose,)), samples=7, seq_len=50, bos="every")
    batches = windows.batches(3)
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert torch.equal(torch.cat(batches), windows.ids)
    with pytest.raises(RequestError, match="batch size 0"):
        windows.batches(0)


def test_windows_that_contradict_their_record_cannot_be_made(tokenizer: Any, prose: str) -> None:
    windows = sample_windows(tokenizer, Text("a", (prose,)), samples=2, seq_len=50)
    with pytest.raises(ValueError, match="int64"):
        TokenWindows(windows.ids[:1], windows.record)
    with pytest.raises(ValueError, match="int64"):
        TokenWindows(windows.ids.int(), windows.record)


# --- evaluation windows ---


@pytest.mark.parametrize(("bos", "expected"), [("first", 41), ("never", 41), ("every", 42)])
def test_evaluation_takes_every_whole_window(tokenizer: Any, prose: str, bos: Any, expected: int) -> None:
    windows = evaluation_windows(tokenizer, Text("a", (prose,)), seq_len=48, bos=bos)
    assert len(windows) == expected  # 2000 bytes; 2001 ids with the BOS; 2000 / 47
    assert prose.startswith("".join(decoded(tokenizer, windows)))


def test_max_windows_keeps_the_first(tokenizer: Any, prose: str) -> None:
    whole = evaluation_windows(tokenizer, Text("a", (prose,)), seq_len=50, bos="first")
    some = evaluation_windows(tokenizer, Text("a", (prose,)), seq_len=50, bos="first", max_windows=3)
    assert torch.equal(some.ids, whole.ids[:3])
    more = evaluation_windows(tokenizer, Text("a", (prose,)), seq_len=50, bos="first", max_windows=300)
    assert torch.equal(more.ids, whole.ids)
    with pytest.raises(RequestError, match="0 windows are too few"):
        evaluation_windows(tokenizer, Text("a", (prose,)), seq_len=50, bos="first", max_windows=0)


def test_evaluation_of_less_than_a_window_is_refused(tokenizer: Any) -> None:
    with pytest.raises(RequestError, match=r"9 tokens and one window of 50 need 50: .* smaller --seq-len"):
        evaluation_windows(tokenizer, Text("a", ("too short",)), seq_len=50, bos="never")


# --- what options resolve to ---


def test_bos_auto_is_the_family_default() -> None:
    assert resolve_bos("auto", "every") == "every"
    assert resolve_bos("never", "every") == "never"
    with pytest.raises(RequestError, match="did you mean 'every'"):
        resolve_bos("evry", "first")
