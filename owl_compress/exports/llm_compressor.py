"""llm-compressor: a recipe with exact targets, sparsities as lists, widths as groups of a GPTQ modifier."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import yaml

from owl_compress.documents.plan import Plan
from owl_compress.documents.units import BIT_WIDTHS, KeptOfGrid, Unit
from owl_compress.documents.yaml12 import Dumper
from owl_compress.errors import RequestError, shown
from owl_compress.exports.contract import Exported, Foreign
from owl_compress.exports.names import by_value, check_tied, check_widths, exactly, named_by, values_by_block
from owl_compress.exports.reading import checked, object_of, part_of
from owl_compress.options import option

_PATTERN = "re:"
_UNSTRUCTURED = "0:0"
_ACTIVATIONS = ("input_activations", "output_activations")
_EVERY = "Linear"
"""The class, and the target where none is named."""

_STAGE, _GROUP = "_stage", "_modifiers"
"""How keys end below which the tool looks for modifiers; it passes all others over."""

_MASK = re.compile(r"([0-9]{1,9}):([0-9]{1,9})")
_PRESET = re.compile(r"W([2-8])A16(?:_ASYM)?")

_PRUNERS = {"wanda": "WandaPruningModifier", "sparsegpt": "SparseGPTModifier"}
_QUANTIZERS = {"gptq": "GPTQModifier", "rtn": "QuantizationModifier"}


@dataclass(frozen=True)
class LlmCompressorRecipe:
    """A recipe for `oneshot(model=..., recipe="recipe.yaml", dataset=...)`.

    Its sparsities stand in the order of the targets as the model has them. Where all linears of a block keep
    the same, blocks are the targets, otherwise linears. Of N:M every N has a stage of its own, whose mask is
    written as what is *removed* of M.
    """

    modifier: Literal["sparsegpt", "wanda", "gptq", "rtn"] | None = option(
        None, "sparsegpt (default) or wanda for densities, gptq (default) or rtn for bits."
    )
    group_size: int | None = option(
        64, "Of bits: inputs that share a scale, or none for one scale per output.", at_least=1
    )

    name: ClassVar[str] = "llm-compressor"
    units: ClassVar[tuple[Unit, ...]] = (Unit.DENSITY, Unit.BITS)

    def write(self, plan: Plan) -> Exported:
        """The recipe; what the plan skips is ignored there."""
        known = _QUANTIZERS if plan.unit is Unit.BITS else _PRUNERS
        chosen = self.modifier or ("gptq" if plan.unit is Unit.BITS else "sparsegpt")
        if chosen not in known:
            raise RequestError(
                f"modifier {chosen!r} does not carry out budgets in {plan.unit}: use {' or '.join(known)}"
            )
        if plan.unit is Unit.BITS:
            stages = [self._quantized(plan)]
        elif isinstance(plan.grid, KeptOfGrid):
            stages = list(_patterned(plan, plan.grid))
        else:
            stages = [_pruned(plan)]
        recipe = {
            f"part_{number}{_STAGE}": {f"{chosen}{_GROUP}": {known[chosen]: stage}}
            for number, stage in enumerate(stages)
        }
        return Exported(yaml.dump(recipe, Dumper=Dumper, sort_keys=False, width=110))

    def _quantized(self, plan: Plan) -> dict[str, Any]:
        """Groups of exact names, by width; symmetric, as servers take them."""
        check_widths(plan, BIT_WIDTHS, "llm-compressor")
        check_tied(plan, "llm-compressor")
        size = self.group_size
        scales = {"strategy": "group", "group_size": size} if size else {"strategy": "channel"}
        groups = {
            f"group_{place}": {
                "targets": names,
                "weights": {"num_bits": round(bits), "type": "int", "symmetric": True, **scales},
            }
            for place, (bits, names) in enumerate(sorted(by_value(plan.budgets).items()))
        }
        return {"config_groups": groups, "ignore": ["lm_head", *plan.skipped]}

    def read(self, text: str, sizes: Mapping[str, int]) -> Foreign:
        """Stages of modifiers that prune or quantize; linears that none of them targets are left alone."""
        found = [
            _of_modifier(kind, content, sizes)
            for kind, content in _modifiers(object_of(text, "recipe", is_yaml=True))
        ]
        if not found:
            names = ", ".join((*_PRUNERS.values(), *_QUANTIZERS.values()))
            raise RequestError(f"it has no modifier that prunes or quantizes weights: {names} can be read")
        if len({(one.unit, one.kept_of) for one in found}) != 1:
            raise RequestError("its modifiers do not go together in one plan: one unit, and one M of N:M")
        values = {name: value for one in found for name, value in one.values.items()}
        skipped = tuple(name for name in sizes if name not in values)
        return Foreign(found[0].unit, values, skipped, found[0].kept_of)


def _pruned(plan: Plan) -> dict[str, Any]:
    blocks = values_by_block(plan)
    kept = blocks or {budget.name: budget.value for budget in plan.budgets}
    return {
        "sparsity": [round(1 - value, 12) for value in kept.values()],
        "mask_structure": _UNSTRUCTURED,
        "targets": [f"{_PATTERN}{exactly(name)}" for name in kept],
        "ignore": list(plan.skipped),
    }


def _patterned(plan: Plan, grid: KeptOfGrid) -> Iterator[dict[str, Any]]:
    for value, names in sorted(by_value(plan.budgets).items()):
        removed = grid.kept_of - grid.kept(value)
        if removed:
            yield {
                "sparsity": round(1 - value, 12),
                "mask_structure": f"{removed}:{grid.kept_of}",
                "targets": [f"{_PATTERN}{exactly(name)}" for name in names],
                "ignore": [],
            }


def _modifiers(recipe: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    known = (*_PRUNERS.values(), *_QUANTIZERS.values())
    for stage_name, stage in recipe.items():
        if not str(stage_name).endswith(_STAGE):
            continue
        for key, group in checked(stage, dict, f"stage {stage_name!r}").items():
            if str(key).endswith(_GROUP) and isinstance(group, Mapping):
                yield from ((kind, one) for kind, one in group.items() if kind in known)


def _of_modifier(kind: str, content: Mapping[str, Any], sizes: Mapping[str, int]) -> Foreign:
    checked(content, dict, kind)
    if kind in _QUANTIZERS.values():
        return _of_quantizer(kind, content, sizes)
    return _of_pruner(kind, content, sizes)


def _of_quantizer(kind: str, content: Mapping[str, Any], sizes: Mapping[str, int]) -> Foreign:
    values: dict[str, float] = {}
    ignored = {name for target in _list(content, "ignore") for name in _meant(target, sizes, linears=True)}
    for bits, targets in _widths(kind, content):
        for target in targets:
            meant = _meant(target, sizes, linears=True) or ([] if _is_open(target) else [target])
            values |= {linear: bits for linear in meant if linear not in ignored}
    return Foreign(Unit.BITS, values)


def _widths(kind: str, content: Mapping[str, Any]) -> Iterator[tuple[float, list[Any]]]:
    """Bits and their targets: of groups, or of schemes that are known by a name such as W4A16."""
    scheme = content.get("scheme")
    if scheme is None:
        for name, group in part_of(content, "config_groups", dict, kind).items():
            weights = part_of(checked(group, dict, str(name)), "weights", dict, str(name))
            _check_weights_alone(str(name), group, weights)
            yield (
                float(part_of(weights, "num_bits", int, str(name))),
                part_of(group, "targets", list, str(name)),
            )
        return
    named = scheme if isinstance(scheme, Mapping) else {scheme: _list(content, "targets") or [_EVERY]}
    for name, targets in named.items():
        found = _PRESET.fullmatch(str(name))
        if not found:
            raise RequestError(
                f"scheme {name!r} of {kind} quantizes more than weights: W2A16 to W8A16 can be read"
            )
        yield float(found[1]), list(checked(targets, list, f"targets of {name}"))


def _check_weights_alone(name: str, group: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Refuse a group that no budget in bits can say.

    Raises:
        RequestError: it quantizes activations, or to other than whole numbers.
    """
    more = next((key for key in _ACTIVATIONS if group.get(key) is not None), None)
    if more:
        raise RequestError(f"{name} quantizes more than weights ({more}), which no plan can say: drop that")
    kind = weights.get("type", "int")
    if kind != "int":
        raise RequestError(
            f"weights of {name} have type {shown(kind)}, and a plan has those of type 'int' alone"
        )


def _of_pruner(kind: str, content: Mapping[str, Any], sizes: Mapping[str, int]) -> Foreign:
    sparsity = content.get("sparsity")
    removed, kept_of = _mask(content.get("mask_structure", _UNSTRUCTURED))
    ignored = {name for target in _list(content, "ignore") for name in _meant(target, sizes, linears=True)}
    modules = _modules(sizes)
    meant = _list(content, "targets") or [_EVERY]
    targets = [name for name in modules if any(_meant(one, [name], linears=name in sizes) for one in meant)]
    lists = sparsity if isinstance(sparsity, list) else [sparsity] * len(targets)
    if len(lists) != len(targets) or not targets:
        raise RequestError(
            f"{kind} has {len(lists)} sparsities for {len(targets)} targets in this model, which are found "
            "by name or pattern: one each is needed"
        )
    values: dict[str, float] = {}
    for target, share in zip(targets, lists, strict=True):
        density = (
            1 - removed / kept_of if kept_of else 1 - float(checked(share, float, f"sparsity of {target}"))
        )
        values |= {name: density for name in modules[target] if name not in ignored}
    return Foreign(Unit.DENSITY, values, kept_of=kept_of)


def _modules(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Every module that a linear is in, itself included, with its linears; parents before children."""
    found: dict[str, list[str]] = {}
    for name in sizes:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            found.setdefault(".".join(parts[:end]), []).append(name)
    return found


def _is_open(target: Any) -> bool:
    """Whether a target may mean several modules: a pattern, or a class."""
    return not isinstance(target, str) or target.startswith(_PATTERN) or target == _EVERY


def _meant(target: Any, names: Any, *, linears: bool = False) -> list[str]:
    """The names that a target means, as compressed-tensors matches them."""
    checked(target, str, "a target")
    if target.startswith(_PATTERN):
        return named_by(target.removeprefix(_PATTERN), names)
    if target == _EVERY and linears:
        return list(names)
    return [target] if target in names else []


def _list(content: Mapping[str, Any], key: str) -> list[Any]:
    found = content.get(key) or []
    return [found] if isinstance(found, str) else list(checked(found, list, repr(key)))


def _mask(structure: Any) -> tuple[int, int | None]:
    """N removed of M; M is None for no pattern."""
    found = _MASK.fullmatch(str(structure))
    if not found or int(found[1]) > int(found[2]):
        raise RequestError(f"mask_structure {shown(structure)} is no N:M")
    return int(found[1]), int(found[2]) or None
