"""Conversations become text in the words of the tokenizer's chat template, and only when asked."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from owl_compress.data.text import Chats, load_text
from owl_compress.data.windows import CalibrationOptions, EvaluationOptions, read_texts, sample_windows
from owl_compress.errors import RequestError

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('no role ' + m.role) }}{% endif %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
)
SAID = [{"role": "user", "content": "How many owls?"}, {"role": "assistant", "content": "Two."}]
SHAREGPT = [{"from": "human", "value": "How many owls?"}, {"from": "gpt", "value": "Two."}]
IN_PARTS = [{"role": "user", "content": [{"type": "text", "text": "How many owls?"}]}, SAID[1]]
WRITTEN = "[user]How many owls?\n[assistant]Two.\n"


@pytest.fixture
def chatty(tokenizer: Any) -> Any:
    """A tokenizer with a chat template, which puts a BOS in front of every conversation."""
    chatty = deepcopy(tokenizer)
    chatty.chat_template = TEMPLATE
    return chatty


def write(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def chats(source: str, **options: Any) -> Chats:
    text = load_text(source, purpose="calibration", chat_template=True, **options)
    assert isinstance(text, Chats)
    return text


def refused(source: str, **options: Any) -> str:
    with pytest.raises(RequestError) as caught:
        load_text(source, **{"purpose": "calibration"} | options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "record",
    [
        {"messages": SAID},
        {"conversations": SHAREGPT},
        {"messages": IN_PARTS},
        {"id": 1, "messages": SAID},
        SAID,
    ],
)
def test_conversations_are_written_as_the_template_has_them(tmp_path: Path, chatty: Any, record: Any) -> None:
    text = chats(write(tmp_path / "a.jsonl", record, record)).written_for(chatty)
    assert text.documents == (WRITTEN, WRITTEN)  # without the BOS of the template
    assert text.joined == 2 * WRITTEN


def test_parquet_and_json_hold_conversations_too(tmp_path: Path, chatty: Any) -> None:
    pq.write_table(pa.table({"messages": [SAID, SAID], "n": [1, 2]}), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps([{"conversations": SHAREGPT}] * 2))
    for name in ("a.parquet", "a.json"):
        assert chats(str(tmp_path / name)).written_for(chatty).documents == (WRITTEN, WRITTEN)
    (tmp_path / "b.json").write_text(json.dumps(SAID))
    assert chats(str(tmp_path / "b.json")).written_for(chatty).documents == (WRITTEN,)


def test_a_hub_set_of_conversations_is_read_alike(monkeypatch: pytest.MonkeyPatch, chatty: Any) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: iter([{"messages": SAID}]))
    assert chats("owner/chats").written_for(chatty).documents == (WRITTEN,)
    assert "conversations in 'messages': add --chat-template" in refused("owner/chats")


def test_the_field_of_the_conversation_may_be_named(tmp_path: Path, chatty: Any) -> None:
    source = write(tmp_path / "a.jsonl", {"messages": [], "dialogue": SAID})
    assert chats(source, text_field="dialogue").written_for(chatty).documents == (WRITTEN,)


def test_bos_of_the_windows_is_said_by_bos_alone(tmp_path: Path, chatty: Any) -> None:
    text = chats(write(tmp_path / "a.jsonl", *[{"messages": SAID}] * 20))
    windows = sample_windows(chatty, text, samples=4, seq_len=30, sampling="first", bos="first")
    assert (windows.ids == chatty.bos_token_id).sum() == 1
    assert windows.record.chat_template is True
    never = sample_windows(chatty, text, samples=4, seq_len=30, bos="never")
    assert not (never.ids == chatty.bos_token_id).any()


def test_a_file_of_conversations_is_not_read_as_text_unasked(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"messages": SAID})
    assert "conversations in 'messages': add --chat-template" in refused(source)
    assert "is a conversation: add --chat-template" in refused(source, text_field="messages")
    (tmp_path / "a.csv").write_text("messages\n[]\n")
    assert "add --chat-template" in refused(str(tmp_path / "a.csv"))


def test_a_tokenizer_without_a_template_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    text = chats(write(tmp_path / "a.jsonl", {"messages": SAID}))
    with pytest.raises(RequestError, match=r"no chat template to write .*instruction-tuned"):
        text.written_for(tokenizer)


def test_a_conversation_that_the_template_refuses_is_named(tmp_path: Path, chatty: Any) -> None:
    told = [{"role": "narrator", "content": "Night."}]
    text = chats(write(tmp_path / "a.jsonl", {"messages": SAID}, {"messages": told}))
    with pytest.raises(RequestError, match=r"conversation 2 of .*\(no role narrator\)"):
        text.written_for(chatty)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"messages": [SAID[0], {"role": "assistant", "content": 7}]},
            "message 2: role and content must both",
        ),
        ({"messages": [SAID[0], "Two."]}, "message 2: is str"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "holds more than text"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "not valid Unicode"),
        ({"messages": [{"role": "user", "content": ""}]}, "holds no text"),
        ({"massages": SAID}, "did you mean"),
    ],
)
def test_broken_conversations_are_refused(tmp_path: Path, record: Any, message: str) -> None:
    source = write(tmp_path / "a.jsonl", record)
    assert message in refused(source, chat_template=True, text_field="messages")


def test_conversations_and_plain_text_do_not_mix(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"messages": SAID}, {"text": "prose"})
    assert "conversations in 1 records and plain text in 1" in refused(source, chat_template=True)


def test_a_chat_template_is_of_no_use_to_plain_text_alone(tmp_path: Path) -> None:
    talk = write(tmp_path / "a.jsonl", {"messages": SAID})
    calibration = CalibrationOptions("builtin", chat_template=True)
    with pytest.raises(RequestError, match="for conversations, and builtin holds none"):
        read_texts(calibration)
    with pytest.raises(RequestError, match="for conversations, and builtin holds none"):
        read_texts(calibration, EvaluationOptions("builtin", chat_template=True))
    text, held_out = read_texts(calibration, EvaluationOptions(talk, chat_template=True))
    assert not isinstance(text, Chats)
    assert isinstance(held_out, Chats)
