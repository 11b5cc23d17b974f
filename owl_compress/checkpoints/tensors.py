"""Reading a saved checkpoint tensor by tensor: the independent witness of what a compression kept."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError

from owl_compress.checkpoints.files import check_is_file, read_json, unreadable
from owl_compress.errors import RequestError
from owl_compress.models.tensor_file import opened_tensors

INDEX_NAME = "model.safetensors.index.json"
WEIGHTS_NAME = "model.safetensors"
LEFTOVER_SHARD_NAME = "model-not-loaded.safetensors"
"""Beside shards, the one with tensors of the input that the model's class does not load."""


@dataclass(frozen=True)
class TensorHeader:
    """What a file says of a tensor before it is read: dtype as safetensors abbreviates it ("F32"), shape."""

    dtype: str
    shape: tuple[int, ...]


def bytes_on_disk(folder: Path | str) -> int:
    """Size of all weight files (safetensors) in `folder`, in bytes (no configuration or tokenizer)."""
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def has_safetensors(folder: Path | str) -> bool:
    """Whether there are weights in `folder` as safetensors, in one file or with an index of several."""
    return any((Path(folder) / name).exists() for name in (WEIGHTS_NAME, INDEX_NAME))


def tensor_files(folder: Path | str) -> dict[str, Path]:
    """Map every tensor name of a checkpoint folder to the file that holds it, through the index if sharded.

    Raises:
        RequestError: no safetensors weights, a corrupt file or index, or a shard that is not there.
    """
    folder = Path(folder)
    if (folder / WEIGHTS_NAME).exists():
        return dict.fromkeys(_names_in(folder / WEIGHTS_NAME), folder / WEIGHTS_NAME)
    if not (folder / INDEX_NAME).exists():
        raise RequestError(f"{folder} has no safetensors weights ({WEIGHTS_NAME} or {INDEX_NAME})")
    files = _indexed(folder)
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
    return tensor_in(*_find(files, name, folder))


def tensor_headers(folder: Path | str) -> dict[str, TensorHeader]:
    """The header of every saved tensor, by name; no tensor is read.

    Raises:
        RequestError: the checkpoint is corrupt.
    """
    names: dict[Path, list[str]] = {}
    for name, file in tensor_files(folder).items():
        names.setdefault(file, []).append(name)
    headers: dict[str, TensorHeader] = {}
    for file, those in names.items():
        with _opened(file) as tensors:
            for name in those:
                header = tensors.get_slice(name)
                headers[name] = TensorHeader(header.get_dtype(), tuple(header.get_shape()))
    return headers


def saved_dtypes(folder: Path | str, ending: str) -> dict[str, str]:
    """The dtype, as safetensors abbreviates it ("F32"), of every saved tensor whose name ends so.

    Raises:
        RequestError: the checkpoint is corrupt.
    """
    return {name: header.dtype for name, header in tensor_headers(folder).items() if name.endswith(ending)}


def _indexed(folder: Path) -> dict[str, Path]:
    """The shard of every tensor that the index names; the shards lie in the folder, or below it.

    A shard may be a link, as in the hub's cache, but the index itself leads nowhere else.
    """
    index = folder / INDEX_NAME
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not all(isinstance(s, str) for s in weight_map.values()):
        raise RequestError(f"{index} is not a whole index of shards: fetch it again")
    for shard in set(weight_map.values()):
        path = PurePosixPath(shard)
        if path.is_absolute() or ".." in path.parts or not path.name or "\0" in shard:
            raise RequestError(
                f"{index} names the shard {shard!r}, which does not lie in that folder: fetch it again"
            )
    return {name: folder / shard for name, shard in weight_map.items()}


def _find(files: dict[str, Path], name: str, folder: Path | str) -> tuple[Path, str]:
    for candidate in (f"{name}.weight", name):
        if candidate in files:
            return files[candidate], candidate
    raise RequestError(f"checkpoint {folder} has no tensor {name!r}")


def _names_in(file: Path) -> set[str]:
    with _opened(file) as tensors:
        return set(tensors.keys())


def tensor_in(file: Path, name: str) -> torch.Tensor:
    """The tensor that a file has by that very name, on the host in its saved dtype and shape.

    Raises:
        RequestError: the file is missing, or corrupt.
    """
    with _opened(file) as tensors:
        tensor: torch.Tensor = tensors.get_tensor(name)
        return tensor


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    check_is_file(file)
    try:
        with opened_tensors(file) as tensors:
            yield tensors
    except SafetensorError as error:
        raise RequestError(f"{file} is corrupt or truncated ({error}): fetch it again") from error
    except OSError as error:
        raise unreadable(file, error) from error
