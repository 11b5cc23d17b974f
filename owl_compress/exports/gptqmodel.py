"""GPTQModel: `bits`, and `dynamic` with a pattern for each linear (its quantize_config.json)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from owl_compress.documents.plan import Plan
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.exports.contract import Exported, Foreign
from owl_compress.exports.names import FUSED, check_tied, check_widths, exactly, named_by
from owl_compress.exports.reading import checked, json_of, object_of, part_of
from owl_compress.options import option

WIDTHS = (2, 3, 4, 8)
"""The widths that its format has codes for."""

_LEFT_OUT, _MEANT = "-:", "+:"


@dataclass(frozen=True)
class GptqModelConfig:
    """A file whose keys are arguments of `QuantizeConfig`: `QuantizeConfig(**json.load(file))`.

    Servers fuse q/k/v and gate/up and look the fused name up: it gets a rule of its own.
    """

    group_size: int | None = option(
        64, "Inputs that share a scale, or none for one scale per output.", at_least=1
    )

    name: ClassVar[str] = "gptqmodel"
    units: ClassVar[tuple[Unit, ...]] = (Unit.BITS,)

    def write(self, plan: Plan) -> Exported:
        """One pattern of a whole name for each linear; the first that matches counts."""
        check_widths(plan, WIDTHS, "GPTQModel")
        check_tied(plan, "GPTQModel")
        config = {
            "bits": max(round(budget.value) for budget in plan.budgets),
            "group_size": self.group_size or -1,
            "sym": True,
            "desc_act": False,
            "dynamic": dynamic_rules(plan),
        }
        return Exported(
            json_of(config),
            ("of mixed widths in this format vLLM serves 4 and 8 bits, and transformers loads none",),
        )

    def read(self, text: str, sizes: Mapping[str, int]) -> Foreign:
        """Every linear has the bits of the first pattern that matches it, or those of the whole."""
        content = object_of(text, "configuration of GPTQModel")
        base = part_of(content, "bits", int, "the configuration")
        dynamic = checked(content.get("dynamic") or {}, dict, "'dynamic' of the configuration")
        values = dict.fromkeys(sizes, float(base))
        skipped: dict[str, None] = {}
        left = dict.fromkeys(sizes)
        for pattern, rule in dynamic.items():
            is_left_out = pattern.startswith(_LEFT_OUT)
            names = named_by(pattern.removeprefix(_LEFT_OUT).removeprefix(_MEANT), left)
            bits = None if is_left_out else _bits(rule, pattern, base)
            for name in names:
                del left[name]
                if bits is None:
                    skipped[name] = None
                    del values[name]
                else:
                    values[name] = float(bits)
        if not values:
            raise RequestError("its patterns leave every linear alone")
        return Foreign(Unit.BITS, values, tuple(skipped))


def _bits(rule: Any, pattern: str, base: int) -> int:
    bits: int = checked(
        checked(rule, dict, f"rule {pattern!r}").get("bits", base), int, f"bits of {pattern!r}"
    )
    return bits


def dynamic_rules(plan: Plan) -> dict[str, dict[str, int]]:
    """The plan as `dynamic`; linears that it skips have a rule that leaves them out."""
    rules: dict[str, dict[str, int]] = {f"{_LEFT_OUT}{exactly(name)}": {} for name in plan.skipped}
    widths = {budget.name: round(budget.value) for budget in plan.budgets}
    rules |= {exactly(name): {"bits": bits} for name, bits in widths.items()}
    for name, bits in widths.items():
        parent, _, last = name.rpartition(".")
        for parts, fused in FUSED.items():
            if last == parts[0] and all(widths.get(f"{parent}.{part}") == bits for part in parts):
                rules[exactly(f"{parent}.{fused}")] = {"bits": bits}
    return rules
