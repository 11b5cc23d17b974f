"""The `quantization_config` of a packed checkpoint, and what other software's says of ones like it."""

from collections.abc import Mapping
from typing import Any

from torch import nn

METHOD = "compressed-tensors"
_LAYOUT = "pack-quantized"


def describe_packed(
    model: nn.Module, widths: Mapping[str, tuple[int, int | None]], *, apart: bool = False
) -> dict[str, Any]:
    """The `quantization_config` of config.json, which names each packed linear exactly.

    Args:
        model: all other linears of it are to be ignored.
        widths: by linear, the bits of a code and the inputs that share a scale (None: all of an output).
        apart: a group for each linear; else one for each width and group size, the widths rising.
    """
    from compressed_tensors.quantization import (  # noqa: PLC0415 - optional
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
    )

    alike: dict[tuple[int, int, str], list[str]] = {}
    for name, (bits, group_size) in widths.items():
        alike.setdefault((bits, group_size or 0, name if apart else ""), []).append(name)
    groups = {}
    for index, ((bits, group_size, _), names) in enumerate(sorted(alike.items())):
        weights = QuantizationArgs(
            num_bits=bits,
            type="int",
            symmetric=True,
            strategy="group" if group_size else "channel",
            group_size=group_size or None,
        )
        groups[f"group_{index}"] = QuantizationScheme(targets=names, weights=weights, format=_LAYOUT)
    others = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in widths
    ]
    config = QuantizationConfig(
        config_groups=groups, format=_LAYOUT, quantization_status="compressed", ignore=others
    )
    description: dict[str, Any] = config.model_dump(mode="json")
    return description


def is_packed(described: Mapping[str, Any]) -> bool:
    """Whether a config.json describes weights that compressed-tensors stores."""
    description = described.get("quantization_config")
    return isinstance(description, dict) and description.get("quant_method") == METHOD


def quantizes_activations(described: Mapping[str, Any]) -> bool:
    """Whether any group of the `quantization_config` quantizes what goes into its linears, or comes out."""
    groups = described["quantization_config"].get("config_groups") or {}
    return any(
        group.get(part)
        for group in groups.values()
        if isinstance(group, Mapping)
        for part in ("input_activations", "output_activations")
    )
