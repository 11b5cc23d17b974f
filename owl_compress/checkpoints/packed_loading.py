"""Packed checkpoints as ordinary models: whole, or block by block, where codes become weights on arrival.

The package compressed-tensors makes the weights of the codes in both cases.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from owl_compress.checkpoints.hub import quiet_bars
from owl_compress.checkpoints.packed_package import package_in_this_process
from owl_compress.checkpoints.reading import CheckpointSource, forget_quantization_
from owl_compress.checkpoints.stored_tensors import Stored, copied
from owl_compress.checkpoints.streaming import Located
from owl_compress.errors import RequestError
from owl_compress.models.residence import Bring

_SHAPE = "weight_shape"


@dataclass(frozen=True)
class StoredCodes:
    """Where the codes of one weight lie: its parts by their names in the module, each beside an empty one."""

    parts: Mapping[str, tuple[Stored, Tensor]]
    scheme: Any

    def read(self, like: Tensor, called: str, bring: Bring) -> Tensor:
        """What `bring` makes of the weight that the codes stand for; see the protocol.

        Raises:
            RequestError: a part cannot be read, or the weight is of another shape.
        """
        from compressed_tensors.compressors import BaseCompressor  # noqa: PLC0415 - optional

        state = {name: stored.read(empty, called, copied) for name, (stored, empty) in self.parts.items()}
        compressor = BaseCompressor.get_value_from_registry(self.scheme.format.value)
        weight: Tensor = compressor.decompress(state, self.scheme)["weight"]
        if weight.shape != like.shape:
            raise RequestError(
                f"{called} has shape {tuple(weight.shape)} by its codes, {tuple(like.shape)} by config.json: "
                "the checkpoint is broken or its config is another model's"
            )
        return bring(weight.to(like.dtype))


def unpack_(model: nn.Module) -> None:
    """Turn the linears of a packed checkpoint, as transformers loads it, into ordinary ones.

    Raises:
        RequestError: a linear whose stored shape is not the model's, naming the tensor.
    """
    from compressed_tensors.compressors import decompress_module  # noqa: PLC0415 - optional

    for name, module in _packed(model).items():
        _check_stored_shape(name, module)
        decompress_module(module, leave_decompressed=False)
    _drop_hook_(model)


def _packed(model: nn.Module) -> dict[str, nn.Module]:
    """The packed linears by their names."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "quantization_scheme")}


def _drop_hook_(model: Any) -> None:
    """Take off what would decompress on the first forward pass."""
    hook: Any = getattr(model, "ct_decompress_hook", None)
    if hook is not None:
        hook.remove()
        del model.ct_decompress_hook


def _check_stored_shape(name: str, module: nn.Module) -> None:
    stored = getattr(module, "weight_shape", None)
    if not isinstance(stored, Tensor) or not isinstance(module, nn.Linear):
        return
    found, expected = tuple(stored.tolist()), (module.out_features, module.in_features)
    if found != expected:
        raise RequestError(
            f"tensor {name + '.weight_shape'!r} says {found}, the model has {expected}: "
            "the checkpoint is broken or its config is another model's"
        )


def load_packed(source: CheckpointSource, load: Callable[[], Any]) -> Any:
    """The model that `load` reads, its packed linears turned into ordinary ones."""
    with quiet_bars() if source.is_local else nullcontext(), package_in_this_process():
        model = load()
    unpack_(model)
    forget_quantization_(model)
    return model


def stream_packed(source: CheckpointSource, stream: Callable[[Located], Any]) -> Any:
    """The model that `stream` has read block by block, its packed linears turned into ordinary ones.

    Raises:
        RequestError: see `streaming.streamed_model`.
    """
    with quiet_bars() if source.is_local else nullcontext():
        return stream(_unpacked_)


def _unpacked_(model: Any, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Make the packed linears of a model without weights ordinary ones; where the tensors lie by then.

    Raises:
        RequestError: codes of another shape than the model's.
    """
    codes: dict[str, Stored] = {}
    for name, module in _packed(model).items():
        found = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        parts = {
            part: (stored[f"{name}.{part}"], tensor)
            for part, tensor in found.items()
            if part != "bias" and f"{name}.{part}" in stored
        }
        codes[f"{name}.weight"] = StoredCodes(parts, module.quantization_scheme)
        where, empty = parts[_SHAPE]
        shape = where.read(empty, f"{name}.{_SHAPE}", copied)
        setattr(module, _SHAPE, nn.Parameter(shape, requires_grad=False))
        _check_stored_shape(name, module)
        _make_ordinary_(module, parts, shape.tolist())
    _drop_hook_(model)
    forget_quantization_(model)
    return {**stored, **codes}


def _make_ordinary_(module: Any, parts: Iterable[str], shape: Sequence[int]) -> None:
    """Give a packed linear an empty weight of `shape` in the place of its `parts`."""
    from compressed_tensors.quantization import QuantizationMetadata  # noqa: PLC0415 - optional

    dtype = module.weight_scale.dtype
    for part in parts:
        delattr(module, part)
    module.weight = nn.Parameter(torch.empty(*shape, dtype=dtype, device="meta"), requires_grad=False)
    QuantizationMetadata.clear_quantization(module)
    del module.quantization_status
