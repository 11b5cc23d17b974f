"""Reading a saved checkpoint tensor by tensor: the independent witness of what a compression kept."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from owl_compress.errors import RequestError

INDEX_NAME = "model.safetensors.index.json"
WEIGHTS_NAME = "model.safetensors"


def bytes_on_disk(folder: Path | str) -> int:
    """Size of all weight files (safetensors) in `folder`, in bytes (no configuration or tokenizer)."""
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def tensor_files(folder: Path | str) -> dict[str, Path]:
    """Map every tensor name of a checkpoint folder to the file that holds it, through the index if sharded.

    Raises:
        RequestError: no safetensors weights, a corrupt file or index, or a shard that is not there.
    """
    folder = Path(folder)
    if (folder / WEIGHTS_NAME).is_file():
        return dict.fromkeys(_names_in(folder / WEIGHTS_NAME), folder / WEIGHTS_NAME)
    if not (folder / INDEX_NAME).is_file():
        raise RequestError(f"{folder} has no safetensors weights ({WEIGHTS_NAME} or {INDEX_NAME})")
    try:
        weight_map = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): folder / str(shard) for name, shard in weight_map.items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise RequestError(f"{folder / INDEX_NAME} is not a whole index of shards: fetch it again") from error
    for shard in sorted(set(files.values())):
        absent = {name for name, file in files.items() if file == shard} - _names_in(shard)
        if absent:
            raise RequestError(f"{shard} lacks tensor {min(absent)!r}, which the index says it holds")
    return files


def tensor_from_checkpoint(folder: Path | str, name: str) -> torch.Tensor:
    """The saved tensor `name`, or the weight of the linear `name`, on the host in its saved dtype and shape.

    Raises:
        RequestError: the checkpoint is corrupt or has no such tensor.
    """
    files = tensor_files(folder)
    return _read(*_find(files, name, folder))


def saved_dtypes(folder: Path | str, ending: str) -> dict[str, str]:
    """The dtype, as safetensors abbreviates it ("F32"), of every saved tensor whose name ends so.

    Raises:
        RequestError: the checkpoint is corrupt.
    """
    names: dict[Path, list[str]] = {}
    for name, file in tensor_files(folder).items():
        if name.endswith(ending):
            names.setdefault(file, []).append(name)
    dtypes: dict[str, str] = {}
    for file, those in names.items():
        with _opened(file) as tensors:
            dtypes |= {name: tensors.get_slice(name).get_dtype() for name in those}
    return dtypes


def _find(files: dict[str, Path], name: str, folder: Path | str) -> tuple[Path, str]:
    for candidate in (f"{name}.weight", name):
        if candidate in files:
            return files[candidate], candidate
    raise RequestError(f"checkpoint {folder} has no tensor {name!r}")


def _names_in(file: Path) -> set[str]:
    with _opened(file) as tensors:
        return set(tensors.keys())


def _read(file: Path, name: str) -> torch.Tensor:
    with _opened(file) as tensors:
        tensor: torch.Tensor = tensors.get_tensor(name)
        return tensor


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except FileNotFoundError as error:
        raise RequestError(f"{file} is missing: the checkpoint is incomplete, fetch it again") from error
    except SafetensorError as error:
        raise RequestError(f"{file} is corrupt or truncated ({error}): fetch it again") from error
