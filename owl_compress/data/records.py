"""What a record of a data set holds for us: text in a field, or a conversation."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from owl_compress.errors import RequestError, nearest

logger = logging.getLogger(__name__)

DEFAULT_FIELD = "text"
CONVERSATION_FIELDS = ("messages", "conversations", "conversation")
"""Where public data sets keep conversations: as OpenAI's interface has them, and as ShareGPT's exports."""

# ShareGPT's exports call the two sides by other names than chat templates do.
_ROLES = {"human": "user", "gpt": "assistant"}
_TEXT_PART = "text"
_WORDS_OF_A_SENTENCE = 8
_SHOWN = 60

Conversation = tuple[Mapping[str, Any], ...]
"""Messages as a chat template takes them: each with a `role` and its `content`."""

Located = tuple[str, Any]
"""A record, and where it stands: "line 3"."""


@dataclass(frozen=True)
class Wanted:
    """What of a record is wanted: the text in `field`, or with `chat` its conversation, if it holds one."""

    field: str = DEFAULT_FIELD
    chat: bool = False

    def __post_init__(self) -> None:
        if not is_unicode(self.field):
            raise RequestError(f"text field {self.field!r} is not valid Unicode: set --text-field")

    @property
    def columns(self) -> tuple[str, ...]:
        """Fields that may matter, in the order in which they are looked for."""
        return (self.field, *(CONVERSATION_FIELDS if self.chat else ()))


def texts_of(records: Iterable[Located], source: str, wanted: Wanted) -> Iterator[str | Conversation]:
    """The text, or the conversation, of each record; what holds null instead is left out, with a warning.

    Raises:
        RequestError: a record without the field, or with something else in it.
    """
    left_out, read = 0, 0
    for where, record in records:
        found = _text_of(record, wanted, f"{where} of {source}")
        if found is None:
            left_out += 1
        else:
            read += 1
            yield found
    if left_out and not read:
        raise RequestError(f"{source}: field {wanted.field!r} is null in every record: set --text-field")
    if left_out:
        logger.warning(
            "%s: %d of %d records hold null instead of text, and are left out",
            source,
            left_out,
            left_out + read,
        )


def _text_of(record: Any, wanted: Wanted, where: str) -> str | Conversation | None:
    if isinstance(record, str):
        return record
    if is_conversation(record):
        record = {CONVERSATION_FIELDS[0]: record}
    if not isinstance(record, Mapping):
        raise RequestError(
            f"{where} is not an object with a field {wanted.field!r}: write {{{wanted.field!r}: ...}}"
        )
    if wanted.chat:
        for name in wanted.columns:
            if is_conversation(record.get(name)):
                return _conversation(record[name], f"{where}, field {name!r}")
    check_field(record, wanted, where)
    return _text(record[wanted.field], wanted.field, where)


def check_field(record: Mapping[str, Any], wanted: Wanted, where: str) -> None:
    """Refuse fields, of a record or of a table, without the one that is wanted.

    Raises:
        RequestError: with the near name, or with what reads conversations.
    """
    if wanted.field in record:
        return
    chats = [name for name in CONVERSATION_FIELDS if name in record]
    if chats and not wanted.chat:
        raise RequestError(
            f"{where} has no field {wanted.field!r} but conversations in {chats[0]!r}: add --chat-template "
            "to write them as the model's chat template does, or set --text-field"
        )
    known = [_shown(name) for name in record]
    raise RequestError(
        f"{where} has no field {wanted.field!r} ({nearest(wanted.field, known)}): set --text-field"
    )


def _text(value: Any, field: str, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if is_conversation(value):
        raise RequestError(
            f"{where}: field {field!r} is a conversation: add --chat-template to write it as the model's "
            "chat template does"
        )
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        if all(isinstance(item, str) for item in value):
            return _joined(value, field, where)
        raise RequestError(f"{where}: field {field!r} is a list, not of texts alone: set --text-field")
    raise RequestError(f"{where}: field {field!r} is {type(value).__name__}, not text: set --text-field")


def _joined(items: Sequence[str], field: str, where: str) -> str:
    """Sentences or paragraphs as one text, a line each; words that were cut apart are no such list."""
    if len(items) >= _WORDS_OF_A_SENTENCE and not any(" " in item for item in items):
        raise RequestError(
            f"{where}: field {field!r} is a list of single words, not of texts: join them first, or set "
            "--text-field"
        )
    return "\n".join(items)


def _conversation(messages: Sequence[Any], where: str) -> Conversation:
    return tuple(_message(message, f"{where}, message {i}") for i, message in enumerate(messages, start=1))


def _message(message: Any, where: str) -> Mapping[str, Any]:
    """One message in the words of chat templates; whatever else it carries, such as tool calls, stays."""
    if not isinstance(message, Mapping):
        raise RequestError(f"{where}: is {type(message).__name__}, not an object with role and content")
    stated = {name: value for name, value in message.items() if value is not None}
    role = stated.pop("role", None) or stated.pop("from", None)
    content = stated.pop("content", None)
    content = stated.pop("value", None) if content is None else content
    if isinstance(content, list | tuple):
        content = "".join(_part(part, where) for part in content)
    if content is None and "tool_calls" in stated:
        content = ""
    if not isinstance(role, str) or not isinstance(content, str):
        raise RequestError(f"{where}: role and content must both be text: repair it, or leave it out")
    if not is_unicode(role + content):
        raise RequestError(f"{where}: is not valid Unicode (surrogates not allowed): repair it")
    return {"role": _ROLES.get(role, role), "content": content, **stated}


def _part(part: Any, where: str) -> str:
    """The text of one part of a message that is written in parts."""
    text = part.get(_TEXT_PART) if isinstance(part, Mapping) else part
    if not isinstance(text, str):
        raise RequestError(f"{where}: holds more than text, which cannot be calibrated on: leave it out")
    return text


def is_conversation(value: Any) -> bool:
    """Whether this is a list of messages, by its first one."""
    if not isinstance(value, list | tuple) or not value or not isinstance(value[0], Mapping):
        return False
    return {"role", "content"} <= value[0].keys() or {"from", "value"} <= value[0].keys()


def n_characters_of(document: str | Conversation) -> int:
    """Characters of a document; of a conversation, those of what is said."""
    if isinstance(document, str):
        return len(document)
    return sum(len(message["content"]) for message in document)


def is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8: it holds no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(name: object) -> str:
    """The name of a field, fit for a message: what stands in a header may be anything."""
    text = str(name).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
