"""The files of a checkpoint: what cannot be read is named with its reason, and links are followed."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants as hub_constants
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from owl_compress.checkpoints.files import read_json
from owl_compress.checkpoints.loading import load_model
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.errors import RequestError

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(small_llama: LlamaForCausalLM, small_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    save_checkpoint(small_llama, small_tokenizer, tmp_path / "sharded", max_shard_size="3KB")
    assert len(shards_of(tmp_path / "sharded")) > 2
    return tmp_path / "sharded"


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def rename_in_index(folder: Path, new: object) -> None:
    """Let the index name something else for every tensor of the first shard."""
    index = json.loads((folder / INDEX).read_text())
    first = shards_of(folder)[0].name
    names = index["weight_map"]
    index["weight_map"] = {name: new if shard == first else shard for name, shard in names.items()}
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "new", ["/etc/passwd", "../elsewhere.safetensors", "below/../../elsewhere.safetensors", "", ".", "a\0b"]
)
def test_an_index_leads_nowhere_outside_its_folder(
    refusal: Callable[..., str], sharded: Path, new: str
) -> None:
    shutil.copy(shards_of(sharded)[0], sharded.parent / "elsewhere.safetensors")
    rename_in_index(sharded, new)
    assert f"names the shard {new!r}, which does not lie in that folder" in refusal(sharded)


@pytest.mark.parametrize("new", [7, None, ["a"], {"a": 1}])
def test_an_index_that_names_no_files_is_refused(
    refusal: Callable[..., str], sharded: Path, new: object
) -> None:
    rename_in_index(sharded, new)
    assert "is not a whole index of shards" in refusal(sharded)


@pytest.mark.parametrize("weights", ["a shard", "the file"])
def test_weights_that_are_a_folder_or_a_pipe_are_said_to_be_one(
    refusal: Callable[..., str], sharded: Path, checkpoint: Path, weights: str
) -> None:
    folder = sharded if weights == "a shard" else checkpoint
    file = shards_of(folder)[0]
    file.unlink()
    file.mkdir()
    assert f"{file.name} is a folder" in refusal(folder)
    file.rmdir()
    os.mkfifo(file)
    assert f"{file.name} is a pipe" in refusal(folder)


def test_links_are_followed_and_a_dangling_one_is_missing(
    refusal: Callable[..., str], sharded: Path, tmp_path: Path
) -> None:
    file = shards_of(sharded)[1]
    (tmp_path / "blobs").mkdir()
    shutil.move(file, tmp_path / "blobs" / "0123")
    file.symlink_to(tmp_path / "blobs" / "0123")
    load_model(str(sharded))
    (tmp_path / "blobs" / "0123").unlink()
    assert f"{file.name} is missing" in refusal(sharded)


def test_a_model_in_the_cache_of_the_hub_loads_through_its_links(
    checkpoint: Path, refusal: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository, commit = tmp_path / "cache" / "models--owls--tiny", "a" * 40
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for number, file in enumerate(sorted(checkpoint.iterdir())):
        shutil.copy(file, repository / "blobs" / str(number))
        (repository / "snapshots" / commit / file.name).symlink_to(f"../../blobs/{number}")
    loaded = load_model("owls/tiny")
    assert (loaded.hub_id, loaded.revision) == ("owls/tiny", commit)
    config = repository / "snapshots" / commit / "config.json"
    edited = json.loads(config.read_text()) | {"num_hidden_layers": 5000}
    config.write_text(json.dumps(edited))
    assert "announces 5,000 blocks" in refusal("owls/tiny")


@pytest.fixture
def forbid(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """A function that makes a path look as if it belonged to somebody else, whoever runs the tests."""
    forbidden: set[Path] = set()
    opened, looked_at = Path.open, Path.stat

    def open_(self: Path, *positional: Any, **named: Any) -> Any:
        if self in forbidden:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *positional, **named)

    def stat(self: Path, *positional: Any, **named: Any) -> Any:
        if forbidden & set(self.parents):
            raise PermissionError(13, "Permission denied", str(self))
        return looked_at(self, *positional, **named)

    monkeypatch.setattr(Path, "open", open_)
    monkeypatch.setattr(Path, "stat", stat)
    return forbidden.add


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json"])
def test_a_file_of_somebody_else_is_not_said_to_be_missing(
    refusal: Callable[..., str], checkpoint: Path, forbid: Callable[[Path], None], name: str
) -> None:
    forbid(checkpoint / name)
    message = refusal(checkpoint)
    assert f"{name} cannot be read (permission denied)" in message
    assert "fetch" not in message


def test_a_folder_of_somebody_else_is_not_said_to_be_missing(
    refusal: Callable[..., str], checkpoint: Path, forbid: Callable[[Path], None]
) -> None:
    forbid(checkpoint)
    assert "cannot be read (permission denied)" in refusal(checkpoint)
    assert "cannot be read (permission denied)" in refusal(checkpoint / "model.gguf")


def test_a_folder_that_may_not_be_listed_is_not_said_to_lack_files(
    refusal: Callable[..., str], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def iterdir(self: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert "cannot be read (permission denied)" in refusal(checkpoint)


@pytest.mark.parametrize("source", ["/" + "x" * 300, "a\0b", "x" * 300 + ".gguf"])
def test_names_that_no_system_has_are_one_line(refusal: Callable[..., str], source: str) -> None:
    assert refusal(source).startswith(("model '", "path '"))


DEEP, LONG = '{"a": ' + "[" * 100_000, '{"a": ' + "7" * 5000 + "}"


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", INDEX]
)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (DEEP, "nested too deeply"),
        (LONG, "4300 digits"),
        ('{"a": ', "not whole JSON"),
        ("\ufeff{}", "BOM"),
        ("[]", "holds a list"),
        ("\x00", "not whole JSON"),
    ],
    ids=["deep", "long", "cut", "bom", "list", "nul"],
)
def test_json_that_cannot_be_held_is_named(
    refusal: Callable[..., str], sharded: Path, name: str, text: str, words: str
) -> None:
    (sharded / name).write_text(text, encoding="utf-8")
    message = refusal(sharded)
    assert name in message
    assert words in message


@pytest.mark.parametrize("text", [DEEP, LONG], ids=["deep", "long"])
def test_a_tokenizer_file_that_cannot_be_held_is_one_line(
    refusal: Callable[..., str], checkpoint: Path, text: str
) -> None:
    (checkpoint / "tokenizer.json").write_text(text)
    assert str(checkpoint) in refusal(checkpoint)


def test_json_is_read_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": [1, 2.5, "\u00e9"]}')
    assert read_json(tmp_path / "x.json") == {"a": [1, 2.5, "é"]}
    (tmp_path / "x.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(RequestError, match="not whole JSON"):
        read_json(tmp_path / "x.json")
