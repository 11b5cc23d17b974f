import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from owl_compress.data import text as text_module
from owl_compress.data.text import Text, load_text
from owl_compress.errors import RequestError


def write_jsonl(path: Path, *records: Any) -> str:
    path.write_text(
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8"
    )
    return str(path)


def refused(source: str, **options: Any) -> str:
    with pytest.raises(RequestError) as caught:
        load_text(source, **{"purpose": "calibration"} | options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- local files ---


def test_a_text_file_is_taken_verbatim(tmp_path: Path) -> None:
    content = "  first line\r\n\r\nzweite Zeile: äöü \u2028 end\n\n"
    (tmp_path / "a.txt").write_bytes(content.encode())
    text = load_text(str(tmp_path / "a.txt"), purpose="evaluation")
    assert text.joined == content
    assert text.documents == (content,)
    assert text.source == str(tmp_path / "a.txt")


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert load_text(str(tmp_path / "a.txt"), purpose="evaluation").joined == "hello"


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_json_lines_give_one_document_each(tmp_path: Path, suffix: str) -> None:
    source = write_jsonl(tmp_path / f"a.{suffix}", {"text": "one\u2028two"}, {"text": "three", "id": 3})
    assert load_text(source, purpose="evaluation").documents == ("one\u2028two", "three")


def test_a_json_list_or_object_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "one"}, {"text": "two"}], indent=2))
    assert load_text(str(path), purpose="evaluation").joined == "one\n\ntwo"
    path.write_text(json.dumps({"text": "alone"}, indent=2))
    assert load_text(str(path), purpose="evaluation").joined == "alone"


def test_parquet_and_jsonl_read_the_named_field(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1, 2], "body": ["one", "two"]}), tmp_path / "a.parquet")
    source = write_jsonl(tmp_path / "a.jsonl", {"body": "one"}, {"body": "two"})
    for path in (str(tmp_path / "a.parquet"), source):
        assert load_text(path, text_field="body", purpose="evaluation").documents == ("one", "two")


def test_a_missing_field_names_the_near_one(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", {"texts": "one"})
    assert "line 1" in refused(source)
    assert "did you mean 'texts'?" in refused(source)
    pq.write_table(pa.table({"texts": ["one"]}), tmp_path / "a.parquet")
    assert "did you mean 'texts'?" in refused(str(tmp_path / "a.parquet"))


def test_a_value_that_is_not_text_is_refused(tmp_path: Path) -> None:
    assert "line 2" in refused(write_jsonl(tmp_path / "a.jsonl", {"text": "one"}, {"text": 7}))
    assert "not an object" in refused(write_jsonl(tmp_path / "b.jsonl", ["one"]))
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    assert "row 1" in refused(str(tmp_path / "a.parquet"))


def test_a_broken_json_line_is_named_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "tw')
    assert "line 3 of" in refused(str(tmp_path / "a.jsonl"))
    (tmp_path / "a.json").write_text('[{"text": "one"},\n{"text": "tw')
    assert "not whole JSON" in refused(str(tmp_path / "a.json"))


def test_files_that_are_not_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc\0def")
    assert "NUL bytes" in refused(str(tmp_path / "a.txt"))
    (tmp_path / "b.txt").write_bytes(b"abc\xff\xfedef")
    assert "byte 3" in refused(str(tmp_path / "b.txt"))
    (tmp_path / "c.parquet").write_bytes(b"no parquet")
    assert "not a readable parquet file" in refused(str(tmp_path / "c.parquet"))


@pytest.mark.parametrize("content", ["", " \n\t\n"])
def test_empty_text_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    assert "holds no text" in refused(str(tmp_path / "a.txt"))


def test_a_lone_surrogate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud800"}')
    assert "not valid Unicode" in refused(str(tmp_path / "a.jsonl"))


def test_a_missing_file_offers_the_near_one(tmp_path: Path) -> None:
    (tmp_path / "validation.txt").write_text("text")
    assert "validation.txt'?" in refused(str(tmp_path / "validaton.txt"))
    assert "nor the folder" in refused(str(tmp_path / "nowhere" / "a.txt"))
    assert "there is no file" in refused("x" * 5000 + ".txt")


def test_what_looks_like_a_path_is_never_looked_up_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for source in (
        "data/corpus",
        "other/corpus.txt",
        "./corpus",
        "/corpus/a",
        "a/b/c",
        "corpus.txt",
        "~/corpus",
    ):
        assert "there is no file" in refused(source), source


def test_an_unknown_name_offers_the_near_one() -> None:
    assert "did you mean 'wikitext2'?" in refused("wikitext")
    assert "did you mean 'builtin'?" in refused("buitin")


# --- the hub ---


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The real loader of `datasets`, redirected to a local JSON file; yields what was asked for."""
    asked: list[tuple[str, dict[str, Any]]] = []
    load = datasets.load_dataset
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"text": f"document {i}", "sentence": f"sentence {i}"} for i in range(1, 31)]
    local = write_jsonl(tmp_path / "rows.jsonl", *rows)

    def load_local(path: str, *, split: str, streaming: bool, **options: Any) -> Any:
        asked.append((path, {"split": split, "streaming": streaming, **options}))
        return load("json", data_files={split: local}, split=split, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", load_local)
    yield asked
    datasets.disable_progress_bars()


def test_wikitext2_is_joined_as_published(hub: list[tuple[str, dict[str, Any]]]) -> None:
    text = load_text("wikitext2", purpose="calibration")
    assert text.joined == "\n\n".join(f"document {i}" for i in range(1, 31))
    assert not text.by_document
    load_text("wikitext2", purpose="evaluation")
    same = {"name": "wikitext-2-raw-v1", "streaming": False}
    assert hub == [
        ("Salesforce/wikitext", same | {"split": "train"}),
        ("Salesforce/wikitext", same | {"split": "test"}),
    ]


def test_ptb_reads_sentences_and_runs_no_code(hub: list[tuple[str, dict[str, Any]]]) -> None:
    text = load_text("ptb", purpose="evaluation", text_field="anything")
    assert text.joined.startswith("sentence 1 sentence 2 ")
    assert hub[0][1]["revision"] == "refs/convert/parquet"
    assert "trust_remote_code" not in hub[0][1]


def test_c4_is_streamed_and_sampled_by_document(
    hub: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = load_text("c4", purpose="calibration")
    assert calibration.by_document
    assert calibration.documents[:2] == ("document 1", "document 2")
    assert hub[0][1] == {
        "split": "train",
        "streaming": True,
        "data_files": {"train": "en/c4-train.00000-of-01024.json.gz"},
    }
    evaluation = load_text("c4", purpose="evaluation")
    assert not evaluation.by_document
    assert hub[1][1]["data_files"] == {"validation": "en/c4-validation.00000-of-00008.json.gz"}
    assert evaluation.joined.startswith("document 1 document 2 ")


def test_a_hub_set_takes_config_and_split_from_its_name(hub: list[tuple[str, dict[str, Any]]]) -> None:
    load_text("owner/name.v2:english:dev", purpose="evaluation")
    load_text("owner/name", purpose="evaluation")
    load_text("owner/name", purpose="calibration", text_field="sentence")
    assert hub == [
        ("owner/name.v2", {"split": "dev", "streaming": True, "name": "english"}),
        ("owner/name", {"split": "test", "streaming": True}),
        ("owner/name", {"split": "train", "streaming": True}),
    ]
    assert "row 1 of owner/name has no field 'body'" in refused("owner/name", text_field="body")


def test_a_huge_hub_set_is_cut_with_a_warning(
    hub: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(text_module, "MAX_HUB_CHARACTERS", 25)
    with caplog.at_level(logging.WARNING):
        assert len(load_text("owner/name", purpose="calibration").documents) == 3
    assert "only its first 3 documents" in caplog.text


@pytest.mark.parametrize("source", ["c4", "wikitext2", "ptb", "owner/name"])
@pytest.mark.parametrize(
    "error", [ConnectionError("Couldn't reach it\nmore"), ValueError("Unknown split"), OSError()]
)
def test_an_unreachable_hub_names_what_needs_no_network(
    source: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    message = refused(source)
    assert "'builtin'" in message
    assert ".txt" in message
    assert repr(source) in message


def test_a_connection_lost_while_streaming_is_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield {"text": "one"}
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **options: rows())
    assert "reset by peer" in refused("c4")


# --- builtin ---


def paragraphs(text: Text) -> list[str]:
    return [" ".join(piece.split()) for piece in re.split(r"\n\s*\n", text.joined) if piece.strip()]


def test_the_builtin_halves_share_no_paragraph_and_are_alike_in_size() -> None:
    calibration = load_text("builtin", purpose="calibration")
    evaluation = load_text("builtin", purpose="evaluation")
    assert not set(paragraphs(calibration)) & set(paragraphs(evaluation))
    for half in (calibration, evaluation):
        assert len(paragraphs(half)) == len(set(paragraphs(half)))
    sizes = len(calibration.joined), len(evaluation.joined)
    assert min(sizes) > 100_000
    assert max(sizes) < 1.05 * min(sizes)


def test_the_builtin_text_is_what_cpython_carries_and_always_the_same() -> None:
    from pydoc_data.topics import topics

    first = load_text("builtin", purpose="calibration")
    assert first == load_text("builtin", purpose="calibration")
    carried = {" ".join(piece.split()) for topic in topics.values() for piece in re.split(r"\n\s*\n", topic)}
    both = set(paragraphs(first)) | set(paragraphs(load_text("builtin", purpose="evaluation")))
    assert both == carried - {""}


def test_an_unknown_purpose_is_refused() -> None:
    assert "unknown purpose" in refused("builtin", purpose="test")
