"""TensorRT Model Optimizer: `quant_cfg`, one entry for the weight quantizer of each linear."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml

from owl_compress.documents.plan import Plan
from owl_compress.documents.units import BIT_WIDTHS, Unit
from owl_compress.documents.yaml12 import Dumper
from owl_compress.errors import RequestError
from owl_compress.exports.contract import Exported, Foreign
from owl_compress.exports.names import check_tied, check_widths
from owl_compress.exports.reading import checked, object_of, part_of
from owl_compress.options import option

_QUANTIZER = ".weight_quantizer"
_SERVED = (4, 8)


@dataclass(frozen=True)
class ModelOptConfig:
    """A YAML file for `mtq.quantize(model, yaml.safe_load(file), forward_loop)`: weights only, symmetric.

    YAML, because the key of a block size is the whole number -1, which JSON cannot write.
    """

    group_size: int | None = option(
        64, "Inputs that share a scale, or none for one scale per output.", at_least=1
    )

    name: ClassVar[str] = "modelopt"
    units: ClassVar[tuple[Unit, ...]] = (Unit.BITS,)

    def write(self, plan: Plan) -> Exported:
        """Everything off, then one entry for each linear: later entries win."""
        check_widths(plan, BIT_WIDTHS, "Model Optimizer")
        check_tied(plan, "Model Optimizer")
        entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
        for budget in plan.budgets:
            scales: dict[str, Any] = (
                {"block_sizes": {-1: self.group_size}} if self.group_size else {"axis": 0}
            )
            config = {"num_bits": round(budget.value), **scales}
            entries.append({"quantizer_name": f"{budget.name}{_QUANTIZER}", "cfg": config})
        text = yaml.dump({"quant_cfg": entries, "algorithm": "max"}, Dumper=Dumper, sort_keys=False)
        odd = sorted({round(budget.value) for budget in plan.budgets} - set(_SERVED))
        widths = ", ".join(map(str, odd))
        notes = (f"widths of {widths} bits are simulated: it packs and serves 4 and 8",) if odd else ()
        return Exported(text, notes)

    def read(self, text: str, sizes: Mapping[str, int]) -> Foreign:
        """Entries for whole names of weight quantizers; those of wildcards only where they turn off."""
        content = object_of(text, "configuration of Model Optimizer", is_yaml=True)
        values: dict[str, float] = {}
        for entry in part_of(content, "quant_cfg", list, "the configuration"):
            name = part_of(checked(entry, dict, "an entry"), "quantizer_name", str, "an entry")
            is_on = bool(entry.get("enable", True))
            if "*" in name and not is_on:
                continue
            if not name.endswith(_QUANTIZER) or "*" in name:
                raise RequestError(f"quantizer {name!r} is no weight quantizer by its whole name")
            linear = name.removesuffix(_QUANTIZER)
            if is_on:
                values[linear] = float(part_of(part_of(entry, "cfg", dict, name), "num_bits", int, name))
            else:
                values.pop(linear, None)
        return Foreign(Unit.BITS, values, tuple(name for name in sizes if name not in values))
