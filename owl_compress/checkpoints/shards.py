"""The weight files of a model whose blocks are not in memory: one for each block, one for the rest, an index.

A block that was compressed has its file already and is linked; any other is read and written by itself.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from owl_compress.checkpoints.stored_size import tensor_bytes
from owl_compress.checkpoints.streaming import StreamedBlock
from owl_compress.checkpoints.tensors import INDEX_NAME, WEIGHTS_NAME, tensor_headers
from owl_compress.documents.disk import sync
from owl_compress.models.residence import blocks_elsewhere, residence_of

_METADATA = {"format": "pt"}


def write_shards(
    model: Any,
    folder: Path,
    *,
    original_names: bool,
    of_block: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> None:
    """Write the blocks of `model` beside the rest of it, which lies in `folder` as one file, and the index.

    With `original_names` the tensors of old checkpoints are called as they were there. `of_block` makes of
    the tensors of a block what is stored of it; by default that is they themselves.
    """
    residences = map(residence_of, blocks_elsewhere(model))
    blocks = [found for found in residences if isinstance(found, StreamedBlock)]
    pattern = f"model-{{:05d}}-of-{len(blocks) + 1:05d}.safetensors"
    rest = folder / pattern.format(len(blocks) + 1)
    headers = tensor_headers(folder)
    weight_map = dict.fromkeys(headers, rest.name)
    n_bytes = sum(map(tensor_bytes, headers.values()))
    (folder / WEIGHTS_NAME).replace(rest)
    sync(rest)
    for number, block in enumerate(blocks, start=1):
        file = folder / pattern.format(number)
        rename = partial(_names_in_files, model) if original_names else _same_names
        names, of_this = (
            _write_changed(of_block(block.read()), rename, file)
            if of_block
            else _write_block(block, rename(block.names), file)
        )
        weight_map |= dict.fromkeys(names, file.name)
        n_bytes += of_this
    content = {
        "metadata": {"total_parameters": model.num_parameters(), "total_size": n_bytes},
        "weight_map": weight_map,
    }
    index = folder / INDEX_NAME
    index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    sync(index)


def _names_in_files(model: Any, names: Iterable[str]) -> dict[str, str]:
    """What tensors are called in files, by these names in the model."""
    stand_ins = {name: torch.empty(0, device="meta") for name in names}
    by_stand_in = {id(one): name for name, one in stand_ins.items()}
    renamed: Mapping[str, Tensor] = revert_weight_conversion(model, stand_ins)
    return {by_stand_in[id(one)]: name for name, one in renamed.items()}


def _same_names(names: Iterable[str]) -> dict[str, str]:
    return {name: name for name in names}


def _write_block(block: StreamedBlock, names: Mapping[str, str], file: Path) -> tuple[list[str], int]:
    """Have the tensors of a block in `file`, called so there; their names, and bytes of all of them."""
    done = block.own_file
    if done is not None and all(name == stored for name, stored in names.items()):
        _link(done, file)
    else:
        save_file({names[name]: tensor for name, tensor in block.read().items()}, file, metadata=_METADATA)
    sync(file)
    return list(names.values()), block.n_bytes


def _write_changed(
    tensors: Mapping[str, Tensor], rename: Callable[[Iterable[str]], dict[str, str]], file: Path
) -> tuple[list[str], int]:
    """The same of tensors that stand for a block."""
    names = rename(tensors)
    save_file({names[name]: tensor for name, tensor in tensors.items()}, file, metadata=_METADATA)
    sync(file)
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return list(names.values()), n_bytes


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
