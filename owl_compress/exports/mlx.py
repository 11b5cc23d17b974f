"""MLX: the quantization of config.json, bits by the path of the layer (mlx-lm)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from owl_compress.documents.plan import Plan
from owl_compress.documents.units import Unit
from owl_compress.exports.contract import Exported, Foreign
from owl_compress.exports.names import check_widths, commonest_width
from owl_compress.exports.reading import checked, json_of, object_of, part_of
from owl_compress.options import option

_WIDTHS = (2, 3, 4, 5, 6, 8)
_OF_ALL = ("group_size", "bits", "mode")


@dataclass(frozen=True)
class MlxQuantization:
    """A map for `mlx_lm.convert(..., quant_predicate=lambda path, _: table.get(path, False))`.

    It also is what mlx-lm writes under `quantization` in config.json. Scales and biases of a group have 32
    bits together, whatever the width.
    """

    group_size: Literal[32, 64, 128] = option(64, "Inputs that share a scale: 32, 64 or 128.")

    name: ClassVar[str] = "mlx"
    units: ClassVar[tuple[Unit, ...]] = (Unit.BITS,)

    def write(self, plan: Plan) -> Exported:
        """The commonest width for the whole, and every linear by name; `false` leaves one alone."""
        check_widths(plan, _WIDTHS, "MLX")
        table: dict[str, Any] = {
            "group_size": self.group_size,
            "bits": commonest_width(plan),
            "mode": "affine",
        }
        for budget in plan.budgets:
            table[budget.name] = {"group_size": self.group_size, "bits": round(budget.value)}
        return Exported(json_of(table | dict.fromkeys(plan.skipped, False)))

    def read(self, text: str, sizes: Mapping[str, int]) -> Foreign:
        """The map itself, or the config.json that has it; what it names not, has the bits of the whole."""
        content = object_of(text, "quantization of MLX")
        table = checked(content.get("quantization", content), dict, "'quantization'")
        base = part_of(table, "bits", int, "the quantization")
        named = {name: one for name, one in table.items() if name not in _OF_ALL}
        skipped = tuple(name for name, one in named.items() if one is False)
        values = {name: float(base) for name in sizes if name not in skipped}
        for name, one in named.items():
            if one is not False and one is not True:
                values[name] = float(part_of(checked(one, dict, name), "bits", int, name))
        return Foreign(Unit.BITS, values, skipped)
