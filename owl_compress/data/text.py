"""Where text comes from: local files and folders, named sets, hub data sets, the English in every CPython."""

import difflib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from owl_compress.data.builtin_text import builtin_halves
from owl_compress.data.chat import written
from owl_compress.data.hub_sets import NAMED, HubSet, read_hub_set, set_of_id
from owl_compress.data.raw_text import cannot_read
from owl_compress.data.records import DEFAULT_FIELD, Conversation, Wanted, is_unicode, n_characters_of
from owl_compress.data.text_files import read_documents
from owl_compress.data.text_folders import read_folder
from owl_compress.errors import RequestError, nearest
from owl_compress.progress import SILENT, Progress

Purpose = Literal["calibration", "evaluation"]

BUILTIN = "builtin"
# Hub data sets and folders named by the user may be of any size; reading stops, with a warning, here.
MAX_HUB_CHARACTERS = 50_000_000

_SPLITS: Mapping[Purpose, str] = {"calibration": "train", "evaluation": "test"}
_FILES = "a .txt, .jsonl, .csv or .parquet file"
_WITHOUT_NETWORK = f"use {BUILTIN!r}, which needs no network, or the path of {_FILES}"


@dataclass(frozen=True)
class Text:
    """Text to calibrate or evaluate on.

    `source` is what the user asked for; `documents` are joined with `separator`. With `by_document` random
    windows are drawn inside single documents (the published protocol for C4), not from the joined text.
    `chat_template` tells that a chat template wrote the documents.
    """

    source: str
    documents: tuple[str, ...]
    separator: str = "\n\n"
    by_document: bool = False
    chat_template: bool = False

    def __post_init__(self) -> None:
        if not any(document.strip() for document in self.documents):
            raise _no_text(self.source)
        for number, document in enumerate(self.documents, start=1):
            if not is_unicode(document):
                raise RequestError(
                    f"document {number} of {self.source} is not valid Unicode (surrogates not allowed): "
                    "repair it"
                )

    @cached_property
    def joined(self) -> str:
        """All documents as one string."""
        return self.separator.join(self.documents)

    def written_for(self, tokenizer: Any, progress: Progress = SILENT) -> "Text":  # noqa: ARG002 - as Chats
        """The text itself, whatever the tokenizer."""
        return self


@dataclass(frozen=True)
class Chats:
    """Conversations, which become text only in the words of a tokenizer's chat template."""

    source: str
    conversations: tuple[Conversation, ...]

    def __post_init__(self) -> None:
        if not any(map(n_characters_of, self.conversations)):
            raise _no_text(self.source)

    def written_for(self, tokenizer: Any, progress: Progress = SILENT) -> Text:
        """The conversations one after the other, as the template of `tokenizer` writes them.

        Raises:
            RequestError: the tokenizer has no template, or the template refuses a conversation.
        """
        documents = written(tokenizer, self.conversations, self.source, progress)
        return Text(self.source, documents, separator="", chat_template=True)


def load_text(
    source: str, *, text_field: str = DEFAULT_FIELD, purpose: Purpose, chat_template: bool = False
) -> Text | Chats:
    """Load the text that `source` names; `purpose` chooses the split of sources that have several.

    `source` is, in this order: `builtin`; a named set (`wikitext2`, `ptb`, `c4`); the path of an existing
    file or folder (files of records are read by `text_field`, anything else as plain text, verbatim; see
    `text_files` and `text_folders`); or a hub data set `owner/name[:config[:split]]`, whose split is, unless
    named, `train` for calibration and `test` for evaluation. One source never stands in for another, and code
    from a data set repository is never run. With `chat_template` records that hold conversations are read as
    such, and must all do so if the first one does.

    Raises:
        RequestError: nothing is there, it is not text, it is empty, or the hub cannot be reached.
    """
    if purpose not in get_args(Purpose):
        raise RequestError(f"unknown purpose {purpose!r}: {nearest(purpose, get_args(Purpose))}")
    if not is_unicode(source):
        raise RequestError(
            f"the name of text {source!r} is not valid Unicode, so no file of ours can hold it: rename it"
        )
    if not source:
        raise RequestError("'' names no text: give a file, a named set, or 'builtin'")
    if source == BUILTIN:
        return Text(source, builtin_halves()[purpose])
    if source in NAMED:
        return _from_hub(source, NAMED[source][purpose])
    wanted = Wanted(text_field, chat_template)
    path = _path(source)
    if _exists(path):
        return _text_or_chats(source, _read(path, wanted, purpose))
    asked = None if Path(source).parent.is_dir() else set_of_id(source, text_field, _SPLITS[purpose])
    if asked:
        return _from_hub(source, asked, chat=chat_template)
    raise _nothing_there(source, path)


def _no_text(source: str) -> RequestError:
    return RequestError(f"{source} holds no text: give a source with at least a few thousand words")


def _path(source: str) -> Path:
    try:
        return Path(source).expanduser()
    except RuntimeError as error:  # ~nobody
        raise RequestError(f"text {source!r}: there is no such user: give the path of {_FILES}") from error


def _exists(path: Path) -> bool:
    """Whether there is such a file; one that may not be looked at is told apart from one that is missing.

    Raises:
        RequestError: a folder on the way is somebody else's.
    """
    try:
        return path.exists()
    except PermissionError as error:
        raise cannot_read(path, error) from error
    except (OSError, ValueError):  # a name too long for the file system, a NUL inside
        return False


def _read(path: Path, wanted: Wanted, purpose: Purpose) -> tuple[str | Conversation, ...]:
    if path.is_dir():
        return read_folder(path, wanted, _SPLITS[purpose], MAX_HUB_CHARACTERS)
    return read_documents(path, wanted)


def _from_hub(source: str, asked: HubSet, *, chat: bool = False) -> Text | Chats:
    documents = read_hub_set(source, asked, _WITHOUT_NETWORK, MAX_HUB_CHARACTERS, chat=chat)
    return _text_or_chats(source, documents, separator=asked.separator, by_document=asked.by_document)


def _text_or_chats(
    source: str,
    documents: Sequence[str | Conversation],
    *,
    separator: str = "\n\n",
    by_document: bool = False,
) -> Text | Chats:
    texts = tuple(document for document in documents if isinstance(document, str))
    conversations = tuple(document for document in documents if not isinstance(document, str))
    if texts and conversations:
        raise RequestError(
            f"{source} holds conversations in {len(conversations)} records and plain text in {len(texts)}: "
            "separate them"
        )
    if conversations:
        return Chats(source, conversations)
    return Text(source, texts, separator=separator, by_document=by_document)


def _nothing_there(source: str, path: Path) -> RequestError:
    with suppress(OSError, ValueError):  # it is no link, or its name is too long for there to be one
        return RequestError(f"text {source} is a link to {path.readlink()}, which does not exist: mend it")
    if path.name == source and not path.suffix:
        known = nearest(source, [BUILTIN, *NAMED])
        return RequestError(
            f"unknown text {source!r} ({known}): give one of these, a file, or a hub data set 'owner/name'"
        )
    siblings: list[str] = []
    with suppress(OSError):
        siblings = [entry.name for entry in path.parent.iterdir() if entry.exists()]
    close = difflib.get_close_matches(path.name, siblings, n=1)
    if close:
        return RequestError(f"there is no file {source}: did you mean {str(path.parent / close[0])!r}?")
    missing = source if _exists(path.parent) else f"{source} (nor the folder {path.parent})"
    return RequestError(f"there is no file {missing}: give the path of {_FILES}")
