"""What config.json announces, held against the headers of the weight files, before a tensor is read.

A configuration is a few lines that anybody can change, and a model is allocated by them; the headers say what
there is. Both are cheap: transformers is asked to load the checkpoint onto the meta device, where renamings,
conversions, tied weights and packed forms are as in earnest, and nothing is allocated.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from owl_compress.checkpoints.tensors import TensorHeader
from owl_compress.errors import RequestError

logger = logging.getLogger(__name__)

_FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
_BLOCK_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers")
_REMEDY = "the checkpoint is broken or its config is another model's"


def check_announced(described: Mapping[str, Any], headers: Mapping[str, TensorHeader], source: str) -> None:
    """Refuse a config.json of more blocks than the files have tensors.

    Even a configuration takes long to be made of it, and the model longer.

    Raises:
        RequestError: see above.
    """
    for part in (described, *(value for value in described.values() if isinstance(value, dict))):
        for key in _BLOCK_COUNTS:
            announced = part.get(key)
            if isinstance(announced, int | float) and announced > len(headers):
                raise RequestError(
                    f"model {source!r}: config.json announces {announced:,} blocks ({key}), and the files "
                    f"hold {len(headers)} tensors in all: {_REMEDY}"
                )


def rehearsal(
    rehearse: Callable[[], tuple[Any, dict[str, Any]]], source: str
) -> tuple[Any, dict[str, Any]] | None:
    """What loading onto the meta device gives: the model without memory, and what transformers says of it.

    None where it fails: loading in earnest comes next, and tells why.
    """
    try:
        return rehearse()
    except RequestError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the loading itself will explain it
        logger.debug("%s cannot be loaded on the meta device: %s", source, error)
        return None


def check_is_complete(info: Mapping[str, Any], source: str) -> None:
    """Refuse a model whose file lacks a tensor: transformers would fill it with random numbers.

    Raises:
        RequestError: a tensor that is missing or of another shape.
    """
    missing, mismatched = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    if mismatched:
        name, found, expected = mismatched[0]
        raise RequestError(
            f"model {source!r}: tensor {name!r} has shape {tuple(found)} in the file, {tuple(expected)} by "
            f"config.json ({len(mismatched)} such): {_REMEDY}"
        )
    if missing:
        raise RequestError(
            f"model {source!r}: tensor {missing[0]!r} is missing from the file ({len(missing)} such): "
            f"the checkpoint is incomplete or its config is another model's"
        )


def check_dtypes(
    model: nn.Module, headers: Mapping[str, TensorHeader], unused: set[str], source: str
) -> None:
    """Refuse weights that are stored as integers, booleans or 8-bit floats without a word of what they mean.

    transformers would cast the bare numbers. For checkpoints whose config.json has no quantization_config.

    Raises:
        RequestError: see above, naming the first tensor.
    """
    tensors = model.state_dict()
    names = sorted(
        name
        for name, header in headers.items()
        if header.dtype not in _FLOATING and name not in unused and _is_weight(name, model, tensors)
    )
    if names:
        dtype = headers[names[0]].dtype
        raise RequestError(
            f"model {source!r}: tensor {names[0]!r} is stored as {dtype} ({len(names)} such), and no "
            "quantization_config in config.json says what such numbers stand for: name the model that it was "
            "made from, or restore its config.json"
        )


def _is_weight(name: str, model: nn.Module, tensors: Mapping[str, Any]) -> bool:
    """Whether a stored name is that of a floating-point tensor of the model, maybe under an older name."""
    prefix = getattr(model, "base_model_prefix", "")
    for known in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
        if known in tensors:
            return bool(tensors[known].is_floating_point())
    return name.endswith(".weight")
