"""Data sets on the Hugging Face hub: the named ones as published, and any other by its id."""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from owl_compress.data.records import Conversation, Located, Wanted, n_characters_of, texts_of
from owl_compress.errors import RequestError
from owl_compress.reach import hub_within_reach

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"(?P<path>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[^:]*))?(:(?P<split>[^:]+))?")
_FILE_SUFFIX = re.compile(r"\.[A-Za-z]{2}\w*$")  # .txt, but not the .v2 of a data set's name


@dataclass(frozen=True)
class HubSet:
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


def _wikitext2(split: str) -> HubSet:
    return HubSet("Salesforce/wikitext", split, config="wikitext-2-raw-v1")


def _ptb(split: str) -> HubSet:
    # The repository itself holds a loading script, which is never run; the hub keeps its output as parquet.
    # Split and separator as in SparseGPT's get_ptb (GPTQ's evaluates on the validation split instead).
    files = f"penn_treebank/{split}/*.parquet"
    revision = "refs/convert/parquet"
    path = "ptb-text-only/ptb_text_only"
    return HubSet(path, split, field="sentence", files=files, revision=revision, separator=" ")


def _c4(split: str, shard: str, max_documents: int, *, by_document: bool) -> HubSet:
    return HubSet(
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
NAMED: Mapping[str, Mapping[str, HubSet]] = {
    "wikitext2": {"calibration": _wikitext2("train"), "evaluation": _wikitext2("test")},
    "ptb": {"calibration": _ptb("train"), "evaluation": _ptb("test")},
    "c4": {
        "calibration": _c4("train", "00000-of-01024", 20_000, by_document=True),
        "evaluation": _c4("validation", "00000-of-00008", 1100, by_document=False),
    },
}


def set_of_id(source: str, field: str, split: str) -> HubSet | None:
    """The data set that `owner/name[:config[:split]]` names, read as a stream; None if it is no such id."""
    named = _HUB_ID.fullmatch(source)
    if named is None or _FILE_SUFFIX.search(named["path"]):
        return None
    return HubSet(
        named["path"], named["split"] or split, config=named["config"] or None, field=field, streaming=True
    )


def read_hub_set(
    source: str, asked: HubSet, remedy: str, most_characters: int, *, chat: bool = False
) -> tuple[str | Conversation, ...]:
    """The documents of a data set: as many as `asked` says, else those within `most_characters`.

    Raises:
        RequestError: the hub cannot be reached or has no such thing (with the `remedy`), or a record lacks
            the field.
    """
    documents: list[str | Conversation] = []
    n_characters = 0
    records = _records(source, asked, remedy)
    for document in texts_of(records, source, Wanted(asked.field, chat)):
        documents.append(document)
        n_characters += n_characters_of(document)
        if len(documents) == asked.max_documents:
            break
        if asked.streaming and asked.max_documents is None and n_characters >= most_characters:
            logger.warning(
                "%s: only its first %d documents (%d characters) are read",
                source,
                len(documents),
                n_characters,
            )
            break
    return tuple(documents)


def _records(source: str, asked: HubSet, remedy: str) -> Iterator[Located]:
    """The rows of a data set, as `datasets` reads them; code from its repository is never run."""
    import datasets  # noqa: PLC0415 - importing it takes seconds, and most calls do not need it

    optional = {
        "name": asked.config,
        "data_files": {asked.split: asked.files} if asked.files else None,
        "revision": asked.revision,
    }
    arguments: dict[str, Any] = {name: value for name, value in optional.items() if value is not None}
    logger.info("loading %s from the Hugging Face hub", source)
    with hub_within_reach() as reachable:
        # What `datasets` raises spans its own errors, ValueErrors and HTTP libraries': all mean the same.
        try:
            rows = datasets.load_dataset(
                asked.path, split=asked.split, streaming=asked.streaming, **arguments
            )
            for number, row in enumerate(rows, start=1):
                yield f"row {number}", row
        except Exception as error:
            raise _cannot_load(source, error, remedy, reachable=reachable) from error


def _cannot_load(source: str, error: Exception, remedy: str, *, reachable: bool) -> RequestError:
    if not reachable:
        return RequestError(
            f"cannot load {source!r}: the Hugging Face hub cannot be reached, and it is not in the cache of "
            f"earlier downloads: check the network, or {remedy}"
        )
    problem = (str(error).strip() or type(error).__name__).splitlines()[0]
    return RequestError(
        f"cannot load {source!r} from the Hugging Face hub ({problem}): "
        f"check name, config, split and network, or {remedy}"
    )
