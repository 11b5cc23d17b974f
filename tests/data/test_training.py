"""Windows to train on, apart from those to evaluate on."""

import pytest
from transformers import PreTrainedTokenizerFast

from owl_compress.data.text import Text
from owl_compress.data.training import training_windows
from owl_compress.errors import RequestError


def runs(windows: "list[list[int]]", length: int = 16) -> set[tuple[int, ...]]:
    return {tuple(row[i : i + length]) for row in windows for i in range(len(row) - length + 1)}


@pytest.mark.parametrize("samples", [5, 1000])
def test_nothing_is_in_both(tokenizer: PreTrainedTokenizerFast, prose: str, samples: int) -> None:
    text = Text("prose", (prose,))
    found = training_windows(tokenizer, text, samples=samples, apart=4, seq_len=32, seed=0, bos="never")
    assert found.apart is not None
    assert not runs(found.training.ids.tolist()) & runs(found.apart.ids.tolist())
    assert len(found.training) == (5 if samples == 5 else 62 - 4)
    assert len(found.apart) == 4


def test_of_a_short_text_a_tenth_is_held_apart(tokenizer: PreTrainedTokenizerFast, prose: str) -> None:
    short = prose[:700]
    text = Text("prose", (short,))
    found = training_windows(tokenizer, text, samples=99, apart=16, seq_len=32, seed=0, bos="never")
    assert found.apart is not None
    assert (len(found.training), len(found.apart)) == (19, 2)


def test_one_window_leaves_none_to_train_on(tokenizer: PreTrainedTokenizerFast, prose: str) -> None:
    text = Text("prose", (prose[:40],))
    with pytest.raises(RequestError, match="--held-out"):
        training_windows(tokenizer, text, samples=9, apart=4, seq_len=32, seed=0, bos="never")
