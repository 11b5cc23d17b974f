"""AutoRound: `layer_config`, bits by the name of the linear."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from owl_compress.documents.plan import Plan
from owl_compress.documents.units import Unit
from owl_compress.exports.contract import Exported, Foreign
from owl_compress.exports.names import check_tied, check_widths, commonest_width
from owl_compress.exports.reading import checked, json_of, object_of, part_of
from owl_compress.options import option

_WIDTHS = (2, 3, 4, 8)
_NOT_QUANTIZED = 16


@dataclass(frozen=True)
class AutoRoundConfig:
    """A file whose keys are arguments of `AutoRound(model, tokenizer, **json.load(file))`."""

    group_size: int | None = option(
        64, "Inputs that share a scale, or none for one scale per output.", at_least=1
    )
    symmetric: bool = option(True, "Scales with a zero point of their own.", name="asymmetric")

    name: ClassVar[str] = "auto-round"
    units: ClassVar[tuple[Unit, ...]] = (Unit.BITS,)

    def write(self, plan: Plan) -> Exported:
        """The commonest width for the whole, and every linear by name; 16 bits are left alone."""
        check_widths(plan, _WIDTHS, "AutoRound")
        check_tied(plan, "AutoRound")
        return Exported(json_of(arguments_of(plan, self.group_size, symmetric=self.symmetric)))

    def read(self, text: str, sizes: Mapping[str, int]) -> Foreign:
        """Linears without a line of their own have the bits of the whole."""
        content = object_of(text, "configuration of AutoRound")
        base = part_of(content, "bits", int, "the configuration")
        layers = checked(content.get("layer_config") or {}, dict, "'layer_config'")
        bits = {
            name: checked(checked(one, dict, name).get("bits", base), int, f"bits of {name}")
            for name, one in layers.items()
        }
        every = dict.fromkeys(sizes, base) | bits
        values = {name: float(width) for name, width in every.items() if width < _NOT_QUANTIZED}
        return Foreign(Unit.BITS, values, tuple(name for name in every if name not in values))


def arguments_of(plan: Plan, group_size: int | None, *, symmetric: bool) -> dict[str, Any]:
    """The plan as arguments of `AutoRound`: the commonest width for the whole, and every linear by name."""
    rest = {"group_size": group_size or -1, "sym": symmetric}
    layers: dict[str, Any] = {budget.name: {"bits": round(budget.value), **rest} for budget in plan.budgets}
    layers |= {name: {"bits": _NOT_QUANTIZED} for name in plan.skipped}
    return {"bits": commonest_width(plan), **rest, "layer_config": layers}
