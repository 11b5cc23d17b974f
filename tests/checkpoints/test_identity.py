"""Keys of checkpoints: the same for the same files, and a refusal where there are none."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from owl_compress.checkpoints.identity import checkpoint_key
from owl_compress.errors import RequestError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint as far as its names go."""
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    return tmp_path


def test_a_key_is_of_what_is_in_the_files(folder: Path) -> None:
    before = checkpoint_key(str(folder))
    (folder / "result.json").write_text("{}")  # lies beside the weights, and is none of them
    assert checkpoint_key(str(folder)) == before
    save_file({"weight": torch.ones(2)}, folder / "model.safetensors")
    assert checkpoint_key(str(folder)) != before


def test_what_is_called_like_a_file_and_is_none_is_passed_over(folder: Path) -> None:
    before = checkpoint_key(str(folder))
    (folder / "notes.txt").mkdir()
    (folder / "gone.json").symlink_to("nowhere.json")
    assert checkpoint_key(str(folder)) == before


@pytest.mark.parametrize("name", ["a\0b", "two\nlines", "..", "x" * 200])
def test_what_is_no_name_of_the_hub_is_refused_in_a_line(name: str) -> None:
    with pytest.raises(RequestError):
        checkpoint_key(name)
