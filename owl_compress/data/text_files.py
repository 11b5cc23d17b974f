"""Documents in local files and folders: plain text, JSON lines, JSON, CSV, parquet, and folders of these."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from owl_compress.data.raw_text import check_regular, content_suffix, read_string
from owl_compress.data.records import Conversation, Located, Wanted, is_conversation, texts_of
from owl_compress.data.tables import delimited_records, parquet_records
from owl_compress.errors import RequestError

_TABULAR, _MARKUP, _ARCHIVE = (
    "write its text as .jsonl, .csv or .parquet",
    "take the text out of it, or name it .txt if the markup is what you want",
    "unpack it first",
)
# What would be read as prose, markup and all, or is no text.
_UNREAD: Mapping[str, str] = {
    **dict.fromkeys(
        (".arrow", ".feather", ".orc", ".avro", ".xls", ".xlsx", ".ods", ".db", ".sqlite"), _TABULAR
    ),
    **dict.fromkeys((".xml", ".html", ".htm", ".xhtml", ".yaml", ".yml", ".toml", ".ipynb", ".rtf"), _MARKUP),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar", ".lz4"), _ARCHIVE),
    **dict.fromkeys((".pdf", ".doc", ".docx", ".odt", ".epub"), "export it as plain text first"),
}
_LONGEST_WHOLE_NUMBER = 300


def read_documents(path: Path, wanted: Wanted) -> tuple[str | Conversation, ...]:
    """The documents in a file: one for each record, or the whole file as one if it is plain text.

    Raises:
        RequestError: the file cannot be read, is not text, is of a kind that is not read, or a record lacks
            what is wanted.
    """
    check_regular(path)
    return tuple(texts_of(records_in(path, wanted), str(path), wanted))


def records_in(path: Path, wanted: Wanted) -> Iterable[Located]:
    """The records of a file, each with where it stands; a plain text is a single one.

    Raises:
        RequestError: see `read_documents`.
    """
    suffix = content_suffix(path)
    if suffix in _UNREAD:
        raise RequestError(f"{path} is not read as text ({suffix}): {_UNREAD[suffix]}")
    if suffix == ".parquet":
        return parquet_records(path, wanted)
    if suffix in {".csv", ".tsv"}:
        return delimited_records(path, read_string(path), suffix, wanted)
    read = _JSON.get(suffix, _plain)
    return read(path, read_string(path), wanted)


def is_of_records(path: Path) -> bool:
    """Whether a file holds one record after the other, by its name."""
    return content_suffix(path) in {".parquet", ".csv", ".tsv", *_JSON}


def _plain(path: Path, content: str, wanted: Wanted) -> Iterable[Located]:  # noqa: ARG001 - a reader
    """The whole content as one text, verbatim.

    Raises:
        RequestError: it is JSON, whose braces and names would be taken for prose.
    """
    if content.lstrip()[:1] in {"{", "["}:
        try:
            first, _ = json.JSONDecoder(parse_int=_number).raw_decode(content.lstrip())
        except (ValueError, RecursionError):
            first = None
        if isinstance(first, dict) or (isinstance(first, list) and first and isinstance(first[0], dict)):
            raise RequestError(
                f"{path} holds JSON, which would be read as prose: name it .jsonl (an object a line) or .json"
            )
    return [("the text", content)]


def _json_lines(path: Path, content: str, wanted: Wanted) -> Iterator[Located]:  # noqa: ARG001 - a reader
    # Not str.splitlines: JSON strings may hold U+2028 and its like unescaped.
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield (
                f"line {number}",
                _parsed(line, f"line {number} of {path} is not JSON", "repair or remove it"),
            )


def _json_records(path: Path, content: str, wanted: Wanted) -> Iterable[Located]:
    """Records of a .json file: a list of objects, one object, a list in an object, or one object per line."""
    try:
        whole = json.loads(content, parse_int=_number)
    except (ValueError, RecursionError):
        if content.lstrip().startswith("["):
            _parsed(content, f"{path} is not whole JSON", "repair it, or write one object a line")
        return _json_lines(path, content, wanted)
    if isinstance(whole, list) and not is_conversation(whole):
        records = whole
    else:
        records = _records_of_object(whole, str(path), wanted)
    return [(f"record {number}", record) for number, record in enumerate(records, start=1)]


def _records_of_object(whole: Any, source: str, wanted: Wanted) -> list[Any]:
    """The object itself if it has what is wanted, else the one list of objects in it, as in {"data": []}."""
    if not isinstance(whole, dict) or wanted.field in whole or any(map(is_conversation, whole.values())):
        return [whole]
    lists = {
        name: value
        for name, value in whole.items()
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    }
    if len(lists) > 1:
        raise RequestError(f"{source} holds several lists of records ({', '.join(lists)}): leave one in it")
    return next(iter(lists.values()), [whole])


_JSON: Mapping[str, Callable[[Path, str, Wanted], Iterable[Located]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_records,
}


def _parsed(text: str, problem: str, remedy: str) -> Any:
    try:
        return json.loads(text, parse_int=_number)
    except RecursionError as error:
        raise RequestError(f"{problem} that can be read (nested too deeply): {remedy}") from error
    except ValueError as error:
        raise RequestError(f"{problem} ({error}): {remedy}") from error


def _number(digits: str) -> int | float:
    """A whole number in a record, which is nothing to us: Python refuses to read one of many digits."""
    return int(digits) if len(digits) <= _LONGEST_WHOLE_NUMBER else float(digits)
