"""What files on disk hold: formats, encodings, compression, and what is no text."""

import bz2
import gzip
import json
import logging
import lzma
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from owl_compress.data import raw_text
from owl_compress.data.text import Text, load_text
from owl_compress.errors import RequestError


def read(path: Path, **options: Any) -> tuple[str, ...]:
    text = load_text(str(path), purpose="calibration", **options)
    assert isinstance(text, Text)
    return text.documents


def refused(path: Path | str, **options: Any) -> str:
    with pytest.raises(RequestError) as caught:
        load_text(str(path), purpose="calibration", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- records ---


def test_ndjson_is_read_as_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_bytes(b'{"text": "one"}\r\n\r\n{"text": "two"}\r\n')
    assert read(tmp_path / "a.ndjson") == ("one", "two")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'id,text\n1,"one, quoted ""here"""\n2,"two\nlines"\n\n'),
        ("a.tsv", 'id\ttext\n1\t"one, quoted ""here"""\n2\t"two\nlines"\n'),
        ("semicolons.csv", 'id;text\r\n1;"one, quoted ""here"""\r\n2;"two\nlines"\r\n'),
    ],
)
def test_csv_and_tsv_are_read_by_column(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert read(tmp_path / name) == ('one, quoted "here"', "two\nlines")
    assert read(tmp_path / name, text_field="id") == ("1", "2")


def test_a_cell_may_be_longer_than_the_module_csv_allows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "word " * 50_000 + "\n")
    assert len(read(tmp_path / "a.csv")[0]) == 250_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,body\n1,one\n", "no field 'text' (known: body, id)"),
        ("id,texts\n1,one\n", "did you mean 'texts'?"),
        ("id,text\n1,one, two\n", "line 2 of"),
        ('id,text\n1,"one\n', "is not CSV"),
        ("text,text\n1,one\n", "2 columns 'text'"),
        ("id,text\n", "holds no text"),
    ],
)
def test_a_table_that_would_lose_text_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    assert message in refused(tmp_path / "a.csv")


def test_a_list_of_records_in_an_object_is_found(tmp_path: Path) -> None:
    records = [{"text": "one"}, {"text": "two"}]
    (tmp_path / "a.json").write_text(json.dumps({"version": 1, "data": records}))
    assert read(tmp_path / "a.json") == ("one", "two")
    (tmp_path / "a.json").write_text(json.dumps({"train": records, "test": records}))
    assert "several lists of records (train, test)" in refused(tmp_path / "a.json")


def test_a_list_of_sentences_is_one_document(tmp_path: Path) -> None:
    sentences = ["the first one.", "the second one."]
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": sentences}))
    pq.write_table(pa.table({"text": [sentences]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        assert read(tmp_path / name) == ("the first one.\nthe second one.",)


def test_a_list_of_single_words_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"text": ["EU", "rejects", "German", "call", "to", "boycott", "lamb", "."]})
    )
    assert "list of single words" in refused(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": ["one", 2]}))
    assert "not of texts alone" in refused(tmp_path / "b.jsonl")


def test_records_of_null_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pq.write_table(pa.table({"text": ["one", None, "", "two"]}), tmp_path / "a.parquet")
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path / "a.parquet") == ("one", "", "two")
    assert "1 of 4 records hold null" in caplog.text
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": null}')
    assert "null in every record" in refused(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    "typed", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_kind_of_text_column_is_read(tmp_path: Path, typed: Any) -> None:
    column = pa.array(["one", "two", "one"]).cast(typed)
    pq.write_table(pa.table({"text": column, "n": [1, 2, 3]}), tmp_path / "a.parquet", row_group_size=2)
    assert read(tmp_path / "a.parquet") == ("one", "two", "one")


def test_numbers_of_thousands_of_digits_beside_the_text_do_no_harm(tmp_path: Path) -> None:
    number = "9" * 5000
    (tmp_path / "a.jsonl").write_text(f'{{"id": {number}, "text": "one"}}')
    assert read(tmp_path / "a.jsonl") == ("one",)
    (tmp_path / "a.json").write_text(f'[{{"id": {number}, "text": "one"}}]')
    assert read(tmp_path / "a.json") == ("one",)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_that_is_nested_too_deeply_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("[" * 100_000 + "]" * 100_000)
    assert "nested too deeply" in refused(tmp_path / name)


def test_lone_surrogates_in_names_are_told_in_words_that_can_be_printed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"\\ud800": "one"}')
    assert refused(tmp_path / "a.jsonl").encode()
    assert "not valid Unicode" in refused(tmp_path / "a.jsonl", text_field="\ud800")
    assert "not valid Unicode" in refused("\udcff.txt")


# --- what is not read as prose ---


@pytest.mark.parametrize(
    "content", ['{"text": "one"}\n{"text": "two"}\n', '[\n {"text": "one"}]', ' {"a": {"b": 1}}']
)
@pytest.mark.parametrize("name", ["a.txt", "plain"])
def test_json_under_another_name_is_not_taken_for_prose(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert "would be read as prose: name it .jsonl" in refused(tmp_path / name)


@pytest.mark.parametrize(
    "content", ["{braces} are no JSON", "[1] a footnote", "[[a wiki link]]", "{\n  code();\n}"]
)
def test_prose_may_begin_with_a_bracket(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    assert read(tmp_path / "a.txt") == (content,)


@pytest.mark.parametrize("name", ["a.html", "a.xlsx", "a.pdf", "a.zip", "a.yaml", "a.arrow", "a.xml.gz"])
def test_unknown_structured_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"some text")
    assert "is not read as text" in refused(tmp_path / name)


# --- encodings and compression ---


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, encoding: str, name: str) -> None:
    (tmp_path / name).write_bytes("text\nzweite Zeile: äöü 𝄞".encode(encoding))
    expected = {"a.txt": ("text\nzweite Zeile: äöü 𝄞",), "a.csv": ("zweite Zeile: äöü 𝄞",)}
    assert read(tmp_path / name) == expected[name]


@pytest.mark.parametrize("mark", [b"\xfe\xff", b"\x00\x00\xfe\xff"])
def test_big_endian_marks_are_known_too(tmp_path: Path, mark: bytes) -> None:
    encoding = "utf-16-be" if len(mark) == 2 else "utf-32-be"
    (tmp_path / "a.txt").write_bytes(mark + "hello".encode(encoding))
    assert read(tmp_path / "a.txt") == ("hello",)


def test_text_that_is_cut_inside_a_character_names_its_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("hello".encode("utf-16")[:-1])
    assert "not a UTF-16 text file (byte 10" in refused(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("suffix", "compress"), [("gz", gzip.compress), ("xz", lzma.compress), ("bz2", bz2.compress)]
)
def test_compressed_files_are_read_as_what_they_hold(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    records = b'{"text": "one"}\n{"text": "two"}\n'
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(compress(records))
    assert read(tmp_path / f"a.jsonl.{suffix}") == ("one", "two")
    (tmp_path / "prose.txt").write_bytes(compress(b"prose"))  # what it begins with tells, not its name
    assert read(tmp_path / "prose.txt") == ("prose",)
    (tmp_path / f"cut.txt.{suffix}").write_bytes(compress(os.urandom(500))[:-20])
    assert "fetch it again" in refused(tmp_path / f"cut.txt.{suffix}")
    (tmp_path / f"plain.{suffix}").write_bytes(records)
    assert "is not compressed" in refused(tmp_path / f"plain.{suffix}")


def test_zstd_is_read_frame_by_frame_and_to_its_end(tmp_path: Path) -> None:
    compress = pytest.importorskip("zstandard").ZstdCompressor().compress
    frames = compress(b'{"text": "one"}\n') + compress(b'{"text": "two"}\n')
    (tmp_path / "a.jsonl.zst").write_bytes(frames)
    assert read(tmp_path / "a.jsonl.zst") == ("one", "two")
    for broken in (frames[:-3], frames + b"no frame"):
        (tmp_path / "a.jsonl.zst").write_bytes(broken)
        assert "not a whole zstd file" in refused(tmp_path / "a.jsonl.zst")


def test_zstd_without_its_package_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    monkeypatch.setattr(raw_text.sys, "version_info", (3, 11))
    monkeypatch.setattr(raw_text.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'owl-compress[zstd]'" in refused(tmp_path / "a.txt.zst")


def test_a_small_file_that_holds_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_text, "MAX_BYTES", 1000)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"word " * 1000))
    (tmp_path / "a.txt").write_bytes(b"word " * 1000)
    for name in ("a.txt", "a.txt.gz"):
        assert "give an excerpt" in refused(tmp_path / name)


# --- files that are none, or somebody else's ---


def test_a_pipe_or_a_device_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    assert "is a pipe, not a file" in refused(tmp_path / "a.txt")
    assert "is a device, not a file" in refused("/dev/zero")


def test_a_link_to_nothing_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "l.txt").symlink_to("gone.txt")
    message = refused(tmp_path / "l.txt")
    assert "is a link to gone.txt" in message
    assert "did you mean" not in message
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    assert "is a link to" in refused(tmp_path / "loop.txt")


def test_files_of_somebody_else_are_not_told_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*arguments: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.txt").write_text("text")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", denied)
        assert "Permission denied: ask its owner" in refused(tmp_path / "a.txt")
    with monkeypatch.context() as patch:  # a folder on the way may not be entered
        patch.setattr(Path, "exists", denied)
        assert "Permission denied: ask its owner" in refused(tmp_path / "a.txt")
    assert stat.S_ISREG((tmp_path / "a.txt").stat().st_mode)


def test_a_user_that_does_not_exist_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such user" in refused("~nobody_is_called_so/a.txt")
