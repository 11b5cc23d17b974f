"""Checkpoints that other software has quantized: recognised and named before anything of them is loaded.

What marks them is said in one of three places: `quantization_config` in config.json, a file of the tool's own
beside it, or tensors that only make sense together with others (codes and scales).
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from owl_compress.checkpoints.never_loaded import NeverLoaded
from owl_compress.checkpoints.tensors import tensor_files
from owl_compress.errors import RequestError

if TYPE_CHECKING:
    from owl_compress.checkpoints.reading import CheckpointSource

_CONFIG_KEYS = ("quantization_config", "compression_config")
_SIDECARS = {
    "quantize_config.json": "AutoGPTQ",
    "quant_config.json": "AutoAWQ",
    "hf_quant_config.json": "NVIDIA ModelOpt",
}
"""Files by which tools describe their codes where config.json does not, and whose they are."""

_METHODS = {
    "awq": "AWQ",
    "auto-round": "AutoRound",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "fp8": "FP8",
    "gptq": "GPTQ",
    "modelopt": "NVIDIA ModelOpt",
    "mxfp4": "MXFP4",
    "torchao": "torchao",
}
"""What methods are called, where the value of `quant_method` is not their name."""

_SCALES = ("weight_scale", "weight_scale_inv", "weight_scale_2", "weight_global_scale")
_CODES = ("qweight", "qzeros", "g_idx", "weight_packed", "SCB")
_CODE_PARTS = (".weight.absmax", ".weight.quant_map", ".weight.quant_state.")
"""Names of tensors that come beside codes: the last component of the name, or a part of it."""


def refuse_quantized(named: str, what: str) -> RequestError:
    """The one line for all of them: what it is, that it can go no further here, and where to start."""
    return RequestError(
        f"model {named!r} is quantized already ({what}), so its weights cannot be compressed further: start "
        "from the model that it was made from, or from a dequantised copy of it"
    )


def described_quantization(described: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a config.json says of quantized weights, of the model or its language part, if anything."""
    places = [described, described.get("text_config"), described.get("language_config")]
    for place in filter(None, places):
        for key in _CONFIG_KEYS:
            found = place.get(key) if isinstance(place, Mapping) else None
            if isinstance(found, Mapping) and found:
                return found
    return None


def method_name(description: Mapping[str, Any]) -> str:
    """What the method of a `quantization_config` is called, old ones by the keys that they had then."""
    method = description.get("quant_method")
    if not method and (description.get("load_in_4bit") or description.get("load_in_8bit")):
        method = "bitsandbytes"
    if not method and "quant_algo" in description:
        method = "modelopt"
    if not method and "quantization_config" in description:
        method = "compressed-tensors"  # as its predecessor nested it
    name = str(method or "by a method that its config.json does not name")
    return _METHODS.get(name, name)


def quantized_tensor(names: Iterable[str]) -> str | None:
    """The first of the tensors that holds codes or scales of quantized weights, told by its name alone."""
    for name in sorted(names):
        last = name.rpartition(".")[2]
        if last in _SCALES or last in _CODES or any(part in name for part in _CODE_PARTS):
            return name
    return None


def check_names(named: str, names: Collection[str]) -> None:
    """Refuse a checkpoint whose tensors are codes or scales that nothing reads.

    Raises:
        RequestError: see above, naming the tensor.
    """
    found = quantized_tensor(names)
    if found:
        raise refuse_quantized(named, f"it holds {found}, which config.json says nothing of")


def sidecar_of(folder: Path) -> str | None:
    """The file of a tool's own that describes the codes in `folder`, if there is one."""
    return next((name for name in _SIDECARS if (folder / name).is_file()), None)


def check_sidecars(folder: Path) -> None:
    """Refuse the folder of a tool that describes its codes in a file of its own, under names of its own.

    Raises:
        RequestError: see above, naming that file.
    """
    name = sidecar_of(folder)
    if name:
        raise refuse_quantized(str(folder), f"{_SIDECARS[name]}, by its {name}")


class QuantizedElsewhere(NeverLoaded):
    """Recognised in order to be refused: taking codes for weights would give another model."""

    name: ClassVar[str] = "quantized-elsewhere"

    def recognise(self, source: "CheckpointSource") -> bool:
        """By its configuration, or else by the tensors in its folder."""
        return _what(source) is not None

    def check_loadable(self, source: "CheckpointSource") -> None:
        """Refuse it.

        Raises:
            RequestError: always.
        """
        raise refuse_quantized(source.named, _what(source) or self.name)


def _what(source: "CheckpointSource") -> str | None:
    """What the checkpoint was quantized by, and where that is said; None for ordinary weights."""
    if source.gguf:
        return None
    description = described_quantization(source.described)
    if description is not None:
        return method_name(description)
    if not source.is_local:
        return None  # the names of its tensors are known once they are there: see `check_names`
    folder = Path(source.where)
    found = quantized_tensor(_saved_names(folder))
    if found is None:
        return None
    sidecar = sidecar_of(folder)
    by = f"{_SIDECARS[sidecar]}, by its {sidecar}" if sidecar else "config.json says nothing of it"
    return f"{by}; it holds {found}"


def _saved_names(folder: Path) -> Collection[str]:
    """The tensors in `folder`, none where the weights are no safetensors."""
    try:
        return tensor_files(folder)
    except RequestError:
        return ()
