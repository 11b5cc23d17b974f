"""Where text comes from: local files, named sets, hub data sets, and the English inside every CPython."""

import difflib
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from owl_compress.data.text_files import field_of, first_line, read_documents
from owl_compress.errors import RequestError, nearest

logger = logging.getLogger(__name__)

Purpose = Literal["calibration", "evaluation"]

BUILTIN = "builtin"
# Hub data sets named by the user may be of any size; reading stops, with a warning, at this many characters.
MAX_HUB_CHARACTERS = 50_000_000

_HUB_ID = re.compile(r"(?P<path>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[^:]*))?(:(?P<split>[^:]+))?")
_FILE_SUFFIX = re.compile(r"\.[A-Za-z]{2}\w*$")  # .txt, but not the .v2 of a data set's name
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
_WITHOUT_NETWORK = f"use {BUILTIN!r}, which needs no network, or the path of a .txt, .jsonl or .parquet file"


@dataclass(frozen=True)
class Text:
    """Text to calibrate or evaluate on.

    `source` is what the user asked for; `documents` are joined with `separator`. With `by_document` random
    windows are drawn inside single documents (the published protocol for C4), not from the joined text.
    """

    source: str
    documents: tuple[str, ...]
    separator: str = "\n\n"
    by_document: bool = False

    def __post_init__(self) -> None:
        if not any(document.strip() for document in self.documents):
            raise RequestError(
                f"{self.source} holds no text: give a source with at least a few thousand words"
            )
        for number, document in enumerate(self.documents, start=1):
            try:
                document.encode()
            except UnicodeEncodeError as error:
                raise RequestError(
                    f"document {number} of {self.source} is not valid Unicode ({error.reason}): repair it"
                ) from error

    @cached_property
    def joined(self) -> str:
        """All documents as one string."""
        return self.separator.join(self.documents)


@dataclass(frozen=True)
class _HubSet:
    """What to ask `datasets` for, and how the published scripts put it together."""

    path: str
    split: str
    config: str | None = None
    field: str = "text"
    files: str | None = None
    revision: str | None = None
    streaming: bool = False
    max_documents: int | None = None
    separator: str = "\n\n"
    by_document: bool = False


def _wikitext2(split: str) -> _HubSet:
    return _HubSet("Salesforce/wikitext", split, config="wikitext-2-raw-v1")


def _ptb(split: str) -> _HubSet:
    # The repository itself holds a loading script, which is never run; the hub keeps its output as parquet.
    # Split and separator as in SparseGPT's get_ptb (GPTQ's evaluates on the validation split instead).
    files = f"penn_treebank/{split}/*.parquet"
    revision = "refs/convert/parquet"
    path = "ptb-text-only/ptb_text_only"
    return _HubSet(path, split, field="sentence", files=files, revision=revision, separator=" ")


def _c4(split: str, shard: str, max_documents: int, *, by_document: bool) -> _HubSet:
    return _HubSet(
        "allenai/c4",
        split,
        files=f"en/c4-{split}.{shard}.json.gz",
        streaming=True,
        max_documents=max_documents,
        separator=" ",
        by_document=by_document,
    )


# C4 calibration: the published scripts draw random documents from the whole first shard (356317 documents).
# The shard is in random order already: the stream is read as far as 128 windows of 2048 tokens safely need.
# C4 evaluation: the first 1100 documents joined with spaces, as published (there cut at 256 windows of 2048).
_NAMED: Mapping[str, Mapping[Purpose, _HubSet]] = {
    "wikitext2": {"calibration": _wikitext2("train"), "evaluation": _wikitext2("test")},
    "ptb": {"calibration": _ptb("train"), "evaluation": _ptb("test")},
    "c4": {
        "calibration": _c4("train", "00000-of-01024", 20_000, by_document=True),
        "evaluation": _c4("validation", "00000-of-00008", 1100, by_document=False),
    },
}


def load_text(source: str, *, text_field: str = "text", purpose: Purpose) -> Text:
    """Load the text that `source` names; `purpose` chooses the split of sources that have several.

    `source` is, in this order: `builtin`; a named set (`wikitext2`, `ptb`, `c4`); the path of an existing
    file (.jsonl/.json and .parquet are read by `text_field`, anything else as plain text, verbatim); or a hub
    data set `owner/name[:config[:split]]`, whose split is, unless named, `train` for calibration and `test`
    for evaluation. One source never stands in for another, and code from a data set repository is never run.

    Raises:
        RequestError: nothing is there, it is not text, it is empty, or the hub cannot be reached.
    """
    if purpose not in get_args(Purpose):
        raise RequestError(f"unknown purpose {purpose!r}: {nearest(purpose, get_args(Purpose))}")
    if source == BUILTIN:
        return Text(source, _builtin_halves()[purpose])
    if source in _NAMED:
        return _from_hub(source, _NAMED[source][purpose])
    path = Path(source).expanduser()
    if _exists(path):
        return Text(source, read_documents(path, text_field))
    named = _HUB_ID.fullmatch(source)
    if named and not _FILE_SUFFIX.search(named["path"]) and not Path(source).parent.is_dir():
        split = named["split"] or {"calibration": "train", "evaluation": "test"}[purpose]
        wanted = _HubSet(
            named["path"], split, config=named["config"] or None, field=text_field, streaming=True
        )
        return _from_hub(source, wanted)
    raise _nothing_there(source, path)


def _exists(path: Path) -> bool:
    with suppress(OSError, ValueError):  # a name too long for the file system, a NUL inside
        return path.exists()
    return False


def _nothing_there(source: str, path: Path) -> RequestError:
    if path.name == source and not path.suffix:
        known = nearest(source, [BUILTIN, *_NAMED])
        return RequestError(
            f"unknown text {source!r} ({known}): give one of these, a file, or a hub data set 'owner/name'"
        )
    siblings: list[str] = []
    with suppress(OSError):
        siblings = [entry.name for entry in path.parent.iterdir()]
    close = difflib.get_close_matches(path.name, siblings, n=1)
    if close:
        return RequestError(f"there is no file {source}: did you mean {str(path.parent / close[0])!r}?")
    missing = source if _exists(path.parent) else f"{source} (nor the folder {path.parent})"
    return RequestError(f"there is no file {missing}: give the path of a .txt, .jsonl or .parquet file")


def _from_hub(source: str, wanted: _HubSet) -> Text:
    documents: list[str] = []
    n_characters = 0
    for number, row in enumerate(_hub_rows(source, wanted), start=1):
        documents.append(field_of(row, wanted.field, f"row {number} of {source}"))
        n_characters += len(documents[-1])
        if number == wanted.max_documents:
            break
        if wanted.streaming and wanted.max_documents is None and n_characters >= MAX_HUB_CHARACTERS:
            logger.warning(
                "%s: only its first %d documents (%d characters) are read", source, number, n_characters
            )
            break
    return Text(source, tuple(documents), separator=wanted.separator, by_document=wanted.by_document)


def _hub_rows(source: str, wanted: _HubSet) -> Iterator[Any]:
    import datasets  # noqa: PLC0415 - importing it takes seconds, and most calls do not need it

    optional = {
        "name": wanted.config,
        "data_files": {wanted.split: wanted.files} if wanted.files else None,
        "revision": wanted.revision,
    }
    arguments = {name: value for name, value in optional.items() if value is not None}
    logger.info("loading %s from the Hugging Face hub", source)
    # What `datasets` raises spans its own errors, ValueErrors and HTTP libraries': all mean the same here.
    try:
        rows = iter(
            datasets.load_dataset(wanted.path, split=wanted.split, streaming=wanted.streaming, **arguments)
        )
    except Exception as error:
        raise _hub_error(source, error) from error
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise _hub_error(source, error) from error
        yield row


def _hub_error(source: str, error: Exception) -> RequestError:
    return RequestError(
        f"cannot load {source!r} from the Hugging Face hub ({first_line(error)}): "
        f"check name, config, split and network, or {_WITHOUT_NETWORK}"
    )


def _builtin_halves() -> Mapping[Purpose, tuple[str, ...]]:
    """Two disjoint halves of CPython's help topics, alike in size; no paragraph occurs in both, or twice.

    Some topics contain others whole. The longest topic is therefore taken first, each topic loses the
    paragraphs that came before, and what is left goes whole to the half that has less text so far. The text
    differs a little from one CPython version to the next; the recorded sha256 of the token ids tells.
    """
    try:
        from pydoc_data.topics import topics  # noqa: PLC0415 - half a megabyte that only this source needs
    except ImportError as error:
        raise RequestError(
            "this Python lacks pydoc_data, where the builtin text lives: install its full standard library, "
            "or give the path of a .txt, .jsonl or .parquet file"
        ) from error
    seen: set[str] = set()
    halves: dict[Purpose, list[str]] = {"calibration": [], "evaluation": []}
    sizes: dict[Purpose, int] = {"calibration": 0, "evaluation": 0}
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        document = "\n\n".join(_new_paragraphs(topics[name], seen))
        part = min(sizes, key=sizes.__getitem__)
        if document:
            halves[part].append(document)
            sizes[part] += len(document)
    return {part: tuple(documents) for part, documents in halves.items()}


def _new_paragraphs(document: str, seen: set[str]) -> Iterator[str]:
    """Yield the paragraphs not `seen` so far, spacing aside, and remember them."""
    for paragraph in _BLANK_LINES.split(document):
        key = " ".join(paragraph.split())
        if key and key not in seen:
            seen.add(key)
            yield paragraph.strip("\n")
