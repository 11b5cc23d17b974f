"""Packed checkpoints: integer codes in the compressed-tensors format `pack-quantized`, written and read back.

Transformers loads them with the package compressed-tensors at hand, vLLM serves them. One config group for
each width names its linears exactly; symmetric grids only, no activation order (it leaves no trace in ours),
everything else in `ignore`, and never a `sparsity_config`, which servers refuse.
"""

import importlib.util
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from owl_compress.checkpoints.tensors import saved_dtypes
from owl_compress.errors import RequestError
from owl_compress.forms.codes import CodeFormat, QuantizedWeight, coded_modules

PACKAGE = "compressed-tensors"
INSTALL = "pip install 'owl-compress[quant]'"
_METHOD, _LAYOUT = "compressed-tensors", "pack-quantized"
_DENSE = "use --format dense, which stores the dequantised weights"


@dataclass(frozen=True)
class PackedCheckpoint:
    """What `save_pretrained` is to write: all tensors, and how config.json describes them."""

    tensors: dict[str, Tensor]
    quantization_config: dict[str, Any]


def require_package() -> None:
    """Refuse to go on without compressed-tensors.

    Raises:
        RequestError: it is not installed.
    """
    if importlib.util.find_spec("compressed_tensors") is None:
        raise RequestError(
            f"a packed checkpoint needs the package {PACKAGE}: {INSTALL}, or use --format dense"
        )


def check_packable(model: nn.Module, names: Collection[str], code_format: CodeFormat) -> None:
    """Refuse, before any work is done, what the packed format cannot hold.

    Args:
        model: the model, quantized or yet to be.
        names: the linears that are to be packed.
        code_format: how their codes are grouped.

    Raises:
        RequestError: asymmetric codes, a linear that is no torch.nn.Linear, or compressed-tensors missing.
    """
    if not code_format.symmetric:
        # The format has them packed; transformers 5.23 expects them unpacked and takes them for broken.
        raise RequestError(f"asymmetric codes cannot be packed so that transformers loads them: {_DENSE}")
    for name in names:
        module = model.get_submodule(name)
        if type(module) is not nn.Linear:  # FalconLinear cannot be built without its weight
            kind = type(module).__name__
            raise RequestError(f"{name} is a {kind}, and only torch.nn.Linear can be packed: {_DENSE}")
    require_package()


def packed_checkpoint(model: nn.Module) -> PackedCheckpoint:
    """The tensors of `model` with the codes of every quantized linear in place of its weight.

    Raises:
        RequestError: see `check_packable`; nothing is quantized; or a weight was changed since it was.
    """
    coded = list(coded_modules(model))
    if not coded:
        raise RequestError("no linear of this model is quantized: nothing to pack, use --format dense")
    for name, module, codes in coded:
        check_packable(model, [name], codes.code_format)
        if not torch.equal(module.get_parameter("weight").data.cpu(), codes.dequantised()):
            raise RequestError(f"{name} was changed after it was quantized: {_DENSE}")
    tensors = dict(model.state_dict())
    for name, _, codes in coded:
        del tensors[f"{name}.weight"]
        tensors |= {f"{name}.{part}": tensor for part, tensor in _packed(codes).items()}
    return PackedCheckpoint(tensors, _description(model, {name: codes for name, _, codes in coded}))


def _packed(codes: QuantizedWeight) -> dict[str, Tensor]:
    """The tensors of one linear: codes [out, in] become words of 32 bits, [out, in * bits / 32]."""
    from compressed_tensors.compressors.pack_quantized import pack_to_int32  # noqa: PLC0415 - optional

    return {
        "weight_packed": pack_to_int32(codes.codes, codes.bits),
        "weight_scale": codes.scales.contiguous(),
        "weight_shape": torch.tensor(codes.codes.shape),
    }


def _description(model: nn.Module, coded: dict[str, QuantizedWeight]) -> dict[str, Any]:
    """The `quantization_config` of config.json: one group per format and width, the widths rising."""
    from compressed_tensors.quantization import (  # noqa: PLC0415 - optional
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
    )

    targets: dict[tuple[int, int], list[str]] = {}
    for name, codes in coded.items():
        targets.setdefault((codes.bits, codes.group_size or 0), []).append(name)
    groups = {}
    for index, ((bits, group_size), names) in enumerate(sorted(targets.items())):
        weights = QuantizationArgs(
            num_bits=bits,
            type="int",
            symmetric=True,
            strategy="group" if group_size else "channel",
            group_size=group_size or None,
        )
        groups[f"group_{index}"] = QuantizationScheme(targets=names, weights=weights, format=_LAYOUT)
    others = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in coded
    ]
    config = QuantizationConfig(
        config_groups=groups, format=_LAYOUT, quantization_status="compressed", ignore=others
    )
    description: dict[str, Any] = config.model_dump(mode="json")
    return description


def is_packed(config: Any) -> bool:
    """Whether the configuration of a model describes weights that compressed-tensors stores."""
    description = getattr(config, "quantization_config", None)
    method = (
        description.get("quant_method")
        if isinstance(description, dict)
        else getattr(description, "quant_method", None)
    )
    return str(getattr(method, "value", method)) == _METHOD


def check_saved_codes(folder: Path | str) -> None:
    """Refuse a packed checkpoint whose codes were saved as floating-point numbers.

    They would load, each rounded to what such a number holds of 32 bits, and the model would be another.

    Raises:
        RequestError: see above, naming the tensor.
    """
    for name, dtype in saved_dtypes(folder, ".weight_packed").items():
        if dtype.startswith(("F", "BF")):
            raise RequestError(
                f"tensor {name!r} in {folder} holds packed codes as {dtype}, which keeps not all their bits: "
                "something took them for weights and converted them; fetch the checkpoint again"
            )


def unpack_(model: nn.Module) -> bool:
    """Turn the linears of a packed checkpoint, as transformers loads it, into ordinary ones.

    Returns:
        False, with the model untouched, if activations are quantized too: it would become another model.

    Raises:
        RequestError: a linear whose stored shape is not the model's, naming the tensor.
    """
    from compressed_tensors.compressors import decompress_module  # noqa: PLC0415 - optional

    modules = {
        name: module for name, module in model.named_modules() if hasattr(module, "quantization_scheme")
    }
    schemes: list[Any] = [module.quantization_scheme for module in modules.values()]
    if any(scheme.input_activations or scheme.output_activations for scheme in schemes):
        return False
    for name, module in modules.items():
        _check_stored_shape(name, module)
        decompress_module(module, leave_decompressed=False)
    hook: Any = getattr(model, "ct_decompress_hook", None)
    if hook is not None:  # it would decompress on the first forward pass
        hook.remove()
        del model.ct_decompress_hook
    return True


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
