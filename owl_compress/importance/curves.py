"""From trials to curves: the damage of each part by the level that it was compressed to."""

from collections.abc import Mapping, Sequence
from math import fsum

from owl_compress.documents.sensitivity import PartDamage, SensitivityProfile
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.importance.damage import Tried
from owl_compress.importance.parts import Part


def damages_of(
    parts: Sequence[Part], tried: Sequence[Tried], unit: Unit, known: SensitivityProfile | None = None
) -> tuple[PartDamage, ...]:
    """What was measured, part by part; the part as it is comes with no damage.

    Raises:
        RequestError: a part that no level changes, neither one that was tried nor one that is `known`.
    """
    changed = {part.name for part in known.parts if any(part.damage)} if known else set()
    by_part: dict[str, list[Tried]] = {}
    for one in tried:
        by_part.setdefault(one.trial.name, []).append(one)
    found = tuple(_damage(part, by_part[part.name], unit) for part in parts if part.name in by_part)
    for part in found:
        if part.name not in changed and not any(part.damage):
            raise RequestError(
                f"no level changes {part.name}: at {part.levels[0]:g} it is as before; give lower --levels, "
                "or leave it out with --skip"
            )
    return found


def _damage(part: Part, tried: Sequence[Tried], unit: Unit) -> PartDamage:
    sizes = {linear.name: linear.n_weights for linear in part.linears}
    curve = {} if unit is Unit.BITS else {1.0: 0.0}
    for one in tried:
        curve[_level(one.budgets, sizes)] = one.damage
    levels = tuple(sorted(curve))
    others = tuple(sorted({one.trial.level for one in tried} - curve.keys()))
    return PartDamage(
        name=part.name,
        kind=part.kind,
        block=part.block,
        linears=tuple(sizes),
        n_weights=part.n_weights,
        levels=levels,
        damage=tuple(curve[level] for level in levels),
        asked=others or None,
    )


def _level(budgets: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    """The mean over the weights; the very number where all linears share one, which a mean may round off."""
    found = {budgets[name] for name in sizes}
    if len(found) == 1:
        return found.pop()
    return fsum(budgets[name] * size for name, size in sizes.items()) / sum(sizes.values())
