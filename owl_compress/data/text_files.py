"""Documents in local files: plain text, JSON lines, JSON, parquet."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from owl_compress.errors import RequestError, nearest


def read_documents(path: Path, text_field: str) -> tuple[str, ...]:
    """The documents in a file: one for each record of .jsonl, .json and .parquet, else the whole file as one.

    Plain text is taken verbatim, without newline translation; a byte order mark is dropped.

    Raises:
        RequestError: the file cannot be read, is not text, or a record lacks `text_field`.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return tuple(_parquet_column(path, text_field))
    content = _read_utf8(path)
    if suffix not in {".json", ".jsonl"}:
        return (content,)
    records = _json_lines(path, content) if suffix == ".jsonl" else _json_records(path, content)
    return tuple(field_of(record, text_field, f"{where} of {path}") for where, record in records)


def _read_utf8(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error
    if b"\0" in content:
        raise RequestError(
            f"{path} is not a text file (it holds NUL bytes): give UTF-8 text, .jsonl or .parquet"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path} is not a UTF-8 text file (byte {error.start}: {error.reason}): convert it to UTF-8 first"
        ) from error


def _json_lines(path: Path, content: str) -> Iterator[tuple[str, Any]]:
    # Not str.splitlines: JSON strings may hold U+2028 and its like unescaped.
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except ValueError as error:
                raise RequestError(
                    f"line {number} of {path} is not JSON ({error}): repair or remove it"
                ) from error


def _json_records(path: Path, content: str) -> Iterable[tuple[str, Any]]:
    """Records of a .json file: a list of objects, one object, or one object per line."""
    try:
        whole = json.loads(content)
    except ValueError as error:
        if content.lstrip().startswith("["):
            raise RequestError(
                f"{path} is not whole JSON ({error}): repair it, or write one object a line"
            ) from error
        return _json_lines(path, content)
    records = whole if isinstance(whole, list) else [whole]
    return [(f"record {number}", record) for number, record in enumerate(records, start=1)]


def _parquet_column(path: Path, text_field: str) -> Iterator[str]:
    # Imported late: importing owl_compress must stay light.
    import pyarrow as pa  # type: ignore[import-untyped]  # noqa: PLC0415
    import pyarrow.parquet as pq  # type: ignore[import-untyped]  # noqa: PLC0415

    try:
        names = pq.read_schema(path).names
        values = (
            pq.read_table(path, columns=[text_field]).column(0).to_pylist() if text_field in names else []
        )
    except (OSError, pa.ArrowException) as error:
        raise RequestError(f"{path} is not a readable parquet file ({first_line(error)})") from error
    if text_field not in names:
        field_of(dict.fromkeys(names), text_field, str(path))
    for number, value in enumerate(values, start=1):
        yield field_of({text_field: value}, text_field, f"row {number} of {path}")


def field_of(record: Any, text_field: str, where: str) -> str:
    """The text in a record; `where` names the record in errors."""
    if not isinstance(record, dict):
        raise RequestError(
            f"{where} is not an object with a field {text_field!r}: write {{{text_field!r}: ...}}"
        )
    if text_field not in record:
        raise RequestError(
            f"{where} has no field {text_field!r} ({nearest(text_field, record)}): set --text-field"
        )
    value = record[text_field]
    if not isinstance(value, str):
        raise RequestError(
            f"{where}: field {text_field!r} is {type(value).__name__}, not text: set --text-field"
        )
    return value


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
