"""How many bytes the weight files of a checkpoint will take, to the byte, told from shapes alone.

A safetensors file is eight bytes, a header in JSON padded to a multiple of eight, and the tensors one after
the other (https://github.com/huggingface/safetensors, README, "Format"). The writer lays tensors of larger
elements first, then goes by name; that decides how many digits the offsets in the header have.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from owl_compress.checkpoints.tensors import LEFTOVER_SHARD_NAME, WEIGHTS_NAME, TensorHeader

MAX_SHARD_SIZE = "50GB"
"""A weight file is split where it would be larger."""

Sizer = Callable[[Mapping[str, int]], "WeightFiles"]
"""The weight files of a model in some form, by the bits of each linear whose codes are kept."""

# As the writer orders them, the last first: https://github.com/huggingface/safetensors, enum Dtype.
_DTYPES = {
    torch.bool: ("BOOL", 1),
    torch.uint8: ("U8", 1),
    torch.int8: ("I8", 1),
    torch.float8_e5m2: ("F8_E5M2", 1),
    torch.float8_e4m3fn: ("F8_E4M3", 1),
    torch.int16: ("I16", 2),
    torch.uint16: ("U16", 2),
    torch.float16: ("F16", 2),
    torch.bfloat16: ("BF16", 2),
    torch.int32: ("I32", 4),
    torch.uint32: ("U32", 4),
    torch.float32: ("F32", 4),
    torch.complex64: ("C64", 8),
    torch.float64: ("F64", 8),
    torch.int64: ("I64", 8),
    torch.uint64: ("U64", 8),
}
_RANKS = {name: rank for rank, (name, _) in enumerate(_DTYPES.values())}
_ELEMENT_BYTES = dict(_DTYPES.values())
_METADATA = {"__metadata__": {"format": "pt"}}
_ALIGNMENT = 8


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of a checkpoint, each with the headers of its tensors by name."""

    shards: Mapping[str, Mapping[str, TensorHeader]]
    n_params: int

    @property
    def n_bytes(self) -> int:
        """Bytes of all files, with the index where there are several."""
        files = sum(file_bytes(headers) for headers in self.shards.values())
        return files + (len(self._index()) if len(self.shards) > 1 else 0)

    def _index(self) -> bytes:
        every = {name: header for headers in self.shards.values() for name, header in headers.items()}
        content = {
            "metadata": {
                "total_parameters": self.n_params,
                "total_size": sum(map(tensor_bytes, every.values())),
            },
            "weight_map": {name: file for file, headers in self.shards.items() for name in headers},
        }
        return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()

    def carrying(self, tensors: Mapping[str, TensorHeader]) -> "WeightFiles":
        """The same with `tensors` added as leftovers are: to the one file, or as one more shard."""
        if not tensors:
            return self
        name = LEFTOVER_SHARD_NAME if len(self.shards) > 1 else WEIGHTS_NAME
        return WeightFiles({**self.shards, name: {**self.shards.get(name, {}), **tensors}}, self.n_params)


def tensor_bytes(header: TensorHeader) -> int:
    """Bytes of the tensor."""
    return prod(header.shape) * _ELEMENT_BYTES[header.dtype]


def file_bytes(headers: Mapping[str, TensorHeader]) -> int:
    """Bytes of one safetensors file that holds tensors of these `headers`."""
    entries: dict[str, Any] = dict(_METADATA)
    offset = 0
    for name, header in sorted(headers.items(), key=lambda it: (-_RANKS[it[1].dtype], it[0].encode())):
        end = offset + tensor_bytes(header)
        entries[name] = {
            "dtype": header.dtype,
            "shape": list(header.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + -(-len(text) // _ALIGNMENT) * _ALIGNMENT + offset


def saved_tensors(model: Any) -> dict[str, Tensor]:
    """The tensors that are saved of `model`, by its own names, without memory: shared ones once."""
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in ignored}
    kept = remove_tied_weights_from_state_dict(state, model)
    return {name: torch.empty_like(tensor, device="meta") for name, tensor in kept.items()}


def weight_files(
    model: Any,
    tensors: Mapping[str, Tensor],
    *,
    original_names: bool = True,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> WeightFiles:
    """The files that `saving.write_weights` makes of `tensors`, which stand for all of `model` that is saved.

    `original_names` as there. Tensors without memory will do.
    """
    named: dict[str, Tensor] = dict(tensors)
    if original_names:
        named = revert_weight_conversion(model, named)
    split = split_torch_state_dict_into_shards(
        named, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    shards = {
        file: {name: _header(named[name]) for name in names}
        for file, names in split.filename_to_tensors.items()
    }
    return WeightFiles(shards, model.num_parameters())


def _header(tensor: Tensor) -> TensorHeader:
    return TensorHeader(_DTYPES[tensor.dtype][0], tuple(tensor.shape))


def sizer_of_weights(model: Any, *, original_names: bool = True) -> Sizer:
    """The sizer of a form that stores the tensors of `model` as they are in memory, codes as weights."""
    files = weight_files(model, saved_tensors(model), original_names=original_names)
    return lambda _: files
