"""Records in tables: CSV and TSV with a header, and parquet."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from owl_compress.data.records import Located, Wanted, check_field
from owl_compress.errors import RequestError

# By suffix, the usual one first: much of Europe separates by semicolons.
_DELIMITERS = {".tsv": "\t", ".csv": ",;\t|"}
_ROWS_AT_ONCE = 1024


def delimited_records(path: Path, content: str, suffix: str, wanted: Wanted) -> list[Located]:
    """The rows under the header of a CSV or TSV text; a cell may hold line breaks, where it is quoted.

    Raises:
        RequestError: no such column, a row of another length (an unquoted delimiter), or a quote left open.
    """
    delimiter = _delimiter(content, _DELIMITERS[suffix], wanted)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    records: list[Located] = []
    header: list[str] = []
    with _cells_of_any_size(len(content)):
        try:
            for row in filter(None, reader):
                if not header:
                    header = _checked_header(path, row, wanted)
                    continue
                where = f"line {reader.line_num}"
                if len(row) != len(header):
                    raise RequestError(
                        f"{where} of {path} has {len(row)} cells under a header of {len(header)}: "
                        "put cells that hold the delimiter or a line break in double quotes"
                    )
                records.append((where, dict(zip(header, row, strict=True))))
        except csv.Error as error:
            raise RequestError(
                f"line {reader.line_num} of {path} is not {suffix[1:].upper()} ({error}): repair its quotes"
            ) from error
    return records


def _delimiter(content: str, candidates: str, wanted: Wanted) -> str:
    """The first delimiter under which the header has the column that is wanted, else the usual one."""
    header = next((line for line in io.StringIO(content) if line.strip()), "").strip()
    for delimiter in candidates:
        if wanted.field in next(csv.reader([header], delimiter=delimiter), []):
            return delimiter
    return candidates[0]


def _checked_header(path: Path, names: list[str], wanted: Wanted) -> list[str]:
    check_field(dict.fromkeys(names), wanted, f"the header of {path}")
    if names.count(wanted.field) > 1:
        raise RequestError(f"{path} has {names.count(wanted.field)} columns {wanted.field!r}: rename one")
    return names


@contextmanager
def _cells_of_any_size(most: int) -> Iterator[None]:
    """A document may be longer than the 131072 characters that the module csv allows a cell by default."""
    limit = csv.field_size_limit(max(most, 1))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def parquet_records(path: Path, wanted: Wanted) -> Iterator[Located]:
    """The rows of a parquet file, with those of their columns that are wanted.

    Raises:
        RequestError: unreadable, or no such column.
    """
    # Imported late: importing owl_compress must stay light.
    import pyarrow as pa  # type: ignore[import-untyped]  # noqa: PLC0415
    import pyarrow.parquet as pq  # type: ignore[import-untyped]  # noqa: PLC0415

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = [name for name in wanted.columns if name in names]
            if not columns:
                check_field(dict.fromkeys(names), wanted, str(path))
            number = 0
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        problem = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RequestError(f"{path} is not a readable parquet file ({problem})") from error
