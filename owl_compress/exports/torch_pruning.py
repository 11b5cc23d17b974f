"""Torch-Pruning: `pruning_ratio_dict`, the share of outputs removed by the name of the module."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from owl_compress.documents.plan import Plan
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.exports.contract import Exported, Foreign
from owl_compress.exports.reading import checked, json_of, object_of

# Linears whose inputs shrink with the outputs of others; a ratio of theirs would be of the hidden size.
_FOLLOWING = ("o_proj", "out_proj", "down_proj", "fc2", "dense_4h_to_h", "c_proj", "dense")


@dataclass(frozen=True)
class TorchPruningRatios:
    """A map of names to ratios, for a tool that wants modules: `model.get_submodule(name)` of each.

    Only linears that lose outputs are named. What reads them loses the same inputs, as its graph finds.
    """

    name: ClassVar[str] = "torch-pruning"
    units: ClassVar[tuple[Unit, ...]] = (Unit.WIDTH,)

    def write(self, plan: Plan) -> Exported:
        """The share that each linear loses of its outputs."""
        ratios = {
            budget.name: round(1 - budget.value, 12)
            for budget in plan.budgets
            if budget.name.rpartition(".")[2] not in _FOLLOWING
        }
        notes = (
            "Torch-Pruning rounds heads up in each group of queries and removes no key-value heads",
            "linears that read narrowed ones follow, and have no ratio of their own",
        )
        return Exported(json_of(ratios), notes)

    def read(self, text: str, sizes: Mapping[str, int]) -> Foreign:
        """Ratios by name; the linears that follow have that of the first one in their sublayer."""
        ratios = {
            name: float(checked(ratio, float, f"ratio of {name}"))
            for name, ratio in object_of(text, "map of pruning ratios").items()
        }
        for name, ratio in ratios.items():
            if not 0 <= ratio <= 1:
                raise RequestError(f"{name} has a pruning ratio of {ratio}, outside 0 to 1")
        values = {name: 1 - ratio for name, ratio in ratios.items()}
        for name in sizes:
            parent = name.rpartition(".")[0]
            beside = [one for other, one in values.items() if other.rpartition(".")[0] == parent]
            if name not in values and beside:
                values[name] = beside[0]
        return Foreign(Unit.WIDTH, values, tuple(name for name in sizes if name not in values))
