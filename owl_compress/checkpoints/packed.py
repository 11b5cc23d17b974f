"""Packed checkpoints: integer codes in the compressed-tensors format `pack-quantized`, written and read back.

Transformers loads them with the package compressed-tensors at hand, vLLM serves them. One config group for
each width names its linears exactly; symmetric grids only, no activation order (it leaves no trace in ours),
everything else in `ignore`, and never a `sparsity_config`, which servers refuse.
"""

import importlib.util
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from owl_compress.checkpoints.hub import quiet_bars
from owl_compress.checkpoints.narrow_config import refuse_narrowed
from owl_compress.checkpoints.quantized_elsewhere import refuse_quantized
from owl_compress.checkpoints.reading import CheckpointSource, forget_quantization_
from owl_compress.checkpoints.saving import PackedCheckpoint, write_weights
from owl_compress.checkpoints.stored_forms import no_zeros_to_count
from owl_compress.checkpoints.tensors import saved_dtypes
from owl_compress.documents.measurements import Verification
from owl_compress.documents.stored_format import LOAD, StoredFormat
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.forms.codes import CodeFormat, QuantizedWeight, coded_modules
from owl_compress.forms.narrowing import has_narrowed_blocks
from owl_compress.models.structure import ModelStructure

PACKAGE = "compressed-tensors"
INSTALL = "pip install 'owl-compress[quant]'"
_METHOD, _LAYOUT = "compressed-tensors", "pack-quantized"
_DENSE = "use --format dense, which stores the dequantised weights"


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


def is_packed(described: Mapping[str, Any]) -> bool:
    """Whether a config.json describes weights that compressed-tensors stores."""
    description = described.get("quantization_config")
    return isinstance(description, dict) and description.get("quant_method") == _METHOD


def _quantizes_activations(described: Mapping[str, Any]) -> bool:
    """Whether any group of the `quantization_config` quantizes what goes into its linears, or comes out."""
    groups = described["quantization_config"].get("config_groups") or {}
    return any(
        group.get(part)
        for group in groups.values()
        if isinstance(group, Mapping)
        for part in ("input_activations", "output_activations")
    )


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


def unpack_(model: nn.Module) -> None:
    """Turn the linears of a packed checkpoint, as transformers loads it, into ordinary ones.

    Raises:
        RequestError: a linear whose stored shape is not the model's, naming the tensor.
    """
    from compressed_tensors.compressors import decompress_module  # noqa: PLC0415 - optional

    modules = {
        name: module for name, module in model.named_modules() if hasattr(module, "quantization_scheme")
    }
    for name, module in modules.items():
        _check_stored_shape(name, module)
        decompress_module(module, leave_decompressed=False)
    hook: Any = getattr(model, "ct_decompress_hook", None)
    if hook is not None:  # it would decompress on the first forward pass
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


def check_packed_source(source: CheckpointSource) -> None:
    """Refuse packed weights that cannot be read, or that would become another model.

    Raises:
        RequestError: compressed-tensors is missing, activations are quantized too, or the codes in a folder
            are no integers.
    """
    if _quantizes_activations(source.described):
        raise refuse_quantized(source.named, f"{_METHOD}, with activations quantized too")
    require_package()
    if source.is_local:
        check_saved_codes(source.where)


def load_packed(source: CheckpointSource, load: Callable[[], Any]) -> Any:
    """The model that `load` reads, its packed linears turned into ordinary ones."""
    with quiet_bars() if source.is_local else nullcontext():
        model = load()
    unpack_(model)
    forget_quantization_(model)
    return model


class Packed:
    """Codes in the place of quantized weights, everything else as it is in memory."""

    name: ClassVar[str] = "packed"
    option_defaults: ClassVar[Mapping[str, Any]] = {}
    is_asked_for: ClassVar[bool] = False

    def recognise(self, source: CheckpointSource) -> bool:
        """By the method that its configuration names."""
        return is_packed(source.described)

    def check_loadable(self, source: CheckpointSource) -> None:
        """See `check_packed_source`."""
        check_packed_source(source)

    def load(self, source: CheckpointSource) -> Any:
        """The model with ordinary linears, which hold what the codes stand for."""
        return load_packed(source, source.from_pretrained)

    def suits(self, model: Any, *, wants_codes: bool) -> bool:
        """Where codes are to be kept, and blocks are as wide as they were."""
        return wants_codes and not has_narrowed_blocks(model)

    def check_request(self, unit: Unit, parts: Sequence[str], options: Mapping[str, Any]) -> None:
        """It holds all that makes codes."""

    def check_holds(self, model: Any, structure: ModelStructure, code_format: CodeFormat | None) -> None:
        """See `check_packable`."""
        if code_format is not None:
            check_packable(model, [linear.name for linear in structure.linears], code_format)

    def save(self, model: Any, folder: Path, *, max_shard_size: str) -> None:
        """The tensors of `packed_checkpoint`.

        Raises:
            RequestError: see there; or blocks whose widths would be lost.
        """
        refuse_narrowed(model, "packed-narrow")
        write_weights(model, folder, packed=packed_checkpoint(model), max_shard_size=max_shard_size)

    def describe(self) -> StoredFormat:
        """Tag, and what it takes to load."""
        return StoredFormat(
            tag="compressed-tensors",
            description="They are stored as packed integers, in the format `pack-quantized` of "
            "compressed-tensors",
            how_to_load=f"It takes `pip install transformers compressed-tensors`.\n\n{LOAD}",
        )

    def verify(self, source: CheckpointSource, pattern: str) -> Verification:  # noqa: ARG002 - the protocol's signature
        """There is nothing to count."""
        raise no_zeros_to_count(Path(source.where))
