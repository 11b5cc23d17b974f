"""A safetensors file that cannot be opened is told in one of two ways, whatever went wrong."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from owl_compress.models import tensor_file
from owl_compress.models.tensor_file import opened_tensors


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_the_tensors_of_a_file_are_read(file: Path) -> None:
    with opened_tensors(file) as tensors:
        assert torch.equal(tensors.get_tensor("weight"), torch.ones(2))


def test_a_file_that_is_not_there_is_an_error_of_the_operating_system(file: Path) -> None:
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.safetensors"), opened_tensors(file):
        pass


def test_a_broken_file_is_an_error_of_safetensors(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:9])
    with pytest.raises(SafetensorError), opened_tensors(file):
        pass


def test_a_file_that_goes_away_while_it_is_opened_is_one_that_is_not_there(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mapped_too_late(path: Path, **options: Any) -> Any:
        path.unlink()
        return torch.UntypedStorage.from_file(str(path), shared=False, nbytes=8) or safe_open(path, **options)

    monkeypatch.setattr(tensor_file, "safe_open", mapped_too_late)
    with pytest.raises(FileNotFoundError, match=r"a\.safetensors"), opened_tensors(file):
        pass


def test_another_error_of_torch_stays_what_it_is(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot_map(path: Path, **options: Any) -> Any:
        raise RuntimeError("unable to mmap 8 bytes")

    monkeypatch.setattr(tensor_file, "safe_open", cannot_map)
    with pytest.raises(RuntimeError, match="unable to mmap"), opened_tensors(file):
        pass
