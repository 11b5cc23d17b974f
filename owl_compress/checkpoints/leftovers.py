"""Tensors of the input that its model class does not load: carried over into the output, or named there.

Heads that predict several tokens at once are such: published beside the blocks, announced in config.json, and
read by servers alone. transformers leaves them out, some of them without a word.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from owl_compress.checkpoints.quantized_elsewhere import quantized_tensor
from owl_compress.checkpoints.tensors import (
    INDEX_NAME,
    LEFTOVER_SHARD_NAME,
    WEIGHTS_NAME,
    TensorHeader,
    tensor_files,
    tensor_headers,
    tensor_in,
)
from owl_compress.errors import RequestError


@dataclass(frozen=True)
class Leftovers:
    """What of a checkpoint is not in the model that was loaded from it.

    Attributes:
        folder: that holds the files.
        apart: tensors of modules that the model does not have.
        within: other tensors of modules that it has, such as buffers that are computed by now.
    """

    folder: Path
    apart: tuple[str, ...] = ()
    within: tuple[str, ...] = ()


def find_leftovers(
    model: nn.Module, folder: Path, names: Collection[str], unexpected: Iterable[str]
) -> Leftovers:
    """What of the tensors `names` in `folder` is not loaded, by transformers' report or unreported.

    `unexpected` is that report, from which each class leaves out what it expects to be left over.
    """
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    own = set(model.state_dict())
    ignored = {
        name for name in names if name not in own and any(re.search(pattern, name) for pattern in patterns)
    }
    found = sorted(ignored | set(unexpected))
    modules = {name for name, _ in model.named_modules()}
    within = [name for name in found if _is_within(name.rpartition(".")[0], modules)]
    return Leftovers(folder, tuple(name for name in found if name not in set(within)), tuple(within))


def carry_over(leftovers: Leftovers | None, out: Path) -> tuple[str, ...]:
    """Put the tensors of modules that the model does not have into the checkpoint `out`.

    Returns:
        Notes for the result: what was carried over, and what is lost.
    """
    if leftovers is None:
        return ()
    files = _carried_files(leftovers)
    held = set(tensor_files(out))
    copied = [name for name in leftovers.apart if name in files and name not in held]
    if copied:
        _add(out, {name: tensor_in(files[name], name) for name in copied})
    lost = [name for name in leftovers.apart if name not in files and name not in held]
    return (*_note(copied, "copied along"), *_note([*lost, *leftovers.within], "left out"))


def carried_headers(leftovers: Leftovers | None, held: Collection[str]) -> dict[str, TensorHeader]:
    """What `carry_over` adds to a checkpoint that holds the tensors `held`, as its headers."""
    if leftovers is None or not (files := _carried_files(leftovers)):
        return {}
    headers = tensor_headers(leftovers.folder)
    return {name: headers[name] for name in leftovers.apart if name in files and name not in held}


def name_all(leftovers: Leftovers | None) -> tuple[str, ...]:
    """The note for an output that takes none of them, being for readers of the model's own tensors alone."""
    return _note([*leftovers.apart, *leftovers.within], "left out") if leftovers else ()


def _carried_files(leftovers: Leftovers) -> Mapping[str, Path]:
    """Where the tensors lie that can be carried over; config.json of the output describes no codes."""
    are_codes = quantized_tensor(leftovers.apart) is not None
    return {} if are_codes else _files(leftovers.folder)


def _files(folder: Path) -> Mapping[str, Path]:
    """Where each tensor of the input is; nothing if they are pickled, or gone: no reason to fail."""
    try:
        return tensor_files(folder)
    except RequestError:
        return {}


def _note(names: Collection[str], done: str) -> tuple[str, ...]:
    if not names:
        return ()
    what = f"{len(names)} tensors of the input that its model class does not load"
    return (f"{what} are {done}, such as {min(names)}",)


def _is_within(parent: str, modules: Collection[str]) -> bool:
    """Whether the model has the module `parent`, which old files name without the first parts of its path."""
    return bool(parent) and any(name == parent or name.endswith(f".{parent}") for name in modules)


def _add(out: Path, tensors: Mapping[str, Tensor]) -> None:
    """Add tensors to a checkpoint: to its one file, or as one more shard."""
    metadata = {"format": "pt"}
    weights, whole = out / WEIGHTS_NAME, out / f".{WEIGHTS_NAME}"
    if weights.is_file():
        save_file({**load_file(weights), **tensors}, whole, metadata=metadata)
        whole.replace(weights)  # not written in place: what was loaded is still read from there
        return
    save_file(dict(tensors), out / LEFTOVER_SHARD_NAME, metadata=metadata)
    index: dict[str, Any] = json.loads((out / INDEX_NAME).read_text(encoding="utf-8"))
    index["weight_map"] |= dict.fromkeys(tensors, LEFTOVER_SHARD_NAME)
    sizes = index.setdefault("metadata", {})
    added = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    sizes["total_size"] = sizes.get("total_size", 0) + added
    (out / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
