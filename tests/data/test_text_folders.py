"""Folders of data files: shards, hive partitions, splits."""

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from owl_compress.data import text as text_module
from owl_compress.data.text import Text, load_text
from owl_compress.errors import RequestError


def shard(path: Path, *documents: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": list(documents)}), path)


def read(folder: Path, purpose: Any = "calibration") -> tuple[str, ...]:
    text = load_text(str(folder), purpose=purpose)
    assert isinstance(text, Text)
    return text.documents


def refused(folder: Path, purpose: Any = "calibration") -> str:
    with pytest.raises(RequestError) as caught:
        load_text(str(folder), purpose=purpose)
    return str(caught.value)


def test_shards_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    shard(tmp_path / "part-00001.parquet", "three")
    shard(tmp_path / "part-00000.parquet", "one", "two")
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "README.md").write_text("about it")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "stale.parquet").write_bytes(b"stale")
    assert read(tmp_path) == ("one", "two", "three")


def test_hive_partitions_are_read_without_their_keys(tmp_path: Path) -> None:
    shard(tmp_path / "lang=de" / "year=2024" / "0.parquet", "eins")
    shard(tmp_path / "lang=en" / "year=2023" / "0.parquet", "one")
    assert read(tmp_path) == ("eins", "one")


def test_splits_are_chosen_as_on_the_hub(tmp_path: Path) -> None:
    shard(tmp_path / "data" / "train-00000-of-00001.parquet", "to train")
    shard(tmp_path / "data" / "test-00000-of-00001.parquet", "to test")
    assert read(tmp_path, "calibration") == ("to train",)
    assert read(tmp_path, "evaluation") == ("to test",)
    shard(tmp_path / "data" / "val-00000-of-00001.parquet", "to validate")
    (tmp_path / "data" / "test-00000-of-00001.parquet").unlink()
    assert "splits train, validation, not 'test'" in refused(tmp_path, "evaluation")


def test_a_folder_of_one_split_is_meant_as_a_whole(tmp_path: Path) -> None:
    shard(tmp_path / "train" / "0.parquet", "all there is")
    assert read(tmp_path, "evaluation") == ("all there is",)


def test_json_lines_and_compressed_shards_are_read_alike(tmp_path: Path) -> None:
    for number in (1, 0):
        (tmp_path / f"{number}.jsonl").write_text(f'{{"text": "document {number}"}}\n')
    (tmp_path / "dataset_info.json").write_text("{}")
    assert read(tmp_path) == ("document 0", "document 1")


def test_a_folder_that_is_no_text_says_what_it_lacks(tmp_path: Path) -> None:
    assert "folder without .parquet, .jsonl or .csv files" in refused(tmp_path)
    shard(tmp_path / "a.parquet", "one")
    (tmp_path / "b.csv").write_text("text\ntwo\n")
    assert "several kinds (.csv, .parquet)" in refused(tmp_path)


def test_the_broken_shard_is_named(tmp_path: Path) -> None:
    shard(tmp_path / "0.parquet", "one")
    (tmp_path / "1.parquet").write_bytes(b"PAR1")
    assert "1.parquet is not a readable parquet file" in refused(tmp_path)


def test_a_huge_folder_is_cut_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shard(tmp_path / "0.parquet", "a" * 10, "b" * 10)
    (tmp_path / "1.parquet").write_bytes(b"never opened")
    monkeypatch.setattr(text_module, "MAX_HUB_CHARACTERS", 20)
    with caplog.at_level(logging.WARNING):
        assert len(read(tmp_path)) == 2
    assert "only its first 2 documents" in caplog.text
