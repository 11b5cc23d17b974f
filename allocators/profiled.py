"""From a sensitivity profile to groups: its parts, joined where several have to share a value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import fsum

from pydantic import JsonValue

from owl_compress.allocators.base import Group
from owl_compress.allocators.damage import DamageCurve, fit, joined
from owl_compress.allocators.groups import Partition, joint_name, tie_of
from owl_compress.allocators.target import Granularity, Target
from owl_compress.documents.coverage import Coverage
from owl_compress.documents.plan import PREDICTED_DAMAGE
from owl_compress.documents.provenance import ModelIdentity
from owl_compress.documents.report import BlockReport, LinearReport
from owl_compress.documents.sensitivity import PartDamage, PartKind, SensitivityProfile
from owl_compress.documents.units import BitsGrid, KeptOfGrid, Unit
from owl_compress.errors import RequestError

_ROUNDING = 1e-12
_ASKED_WITH = {Unit.DENSITY: "--sparsity", Unit.WIDTH: "--prune-ratio", Unit.BITS: "--bits"}


@dataclass(frozen=True)
class ProfiledModel:
    """What a profile says of its model in the words of a report, of which nothing but damage was measured."""

    profile: SensitivityProfile

    @property
    def model(self) -> ModelIdentity:
        """Which model."""
        return self.profile.model

    @property
    def coverage(self) -> Coverage | None:
        """What of its weights is in the account."""
        return self.profile.coverage

    @cached_property
    def blocks(self) -> tuple[BlockReport, ...]:
        """The blocks in their order, with no metrics."""
        members: dict[str, list[LinearReport]] = {name: [] for name in self.profile.blocks}
        for linear in self.profile.linears:
            members[linear.block].append(
                LinearReport(
                    name=linear.name,
                    role=linear.role,
                    shape=linear.shape,
                    n_weights=linear.n_weights,
                    metrics={},
                )
            )
        return tuple(
            BlockReport(
                name=name, n_weights=sum(one.n_weights for one in linears), metrics={}, linears=tuple(linears)
            )
            for name, linears in members.items()
        )

    @cached_property
    def curves(self) -> Mapping[str, DamageCurve]:
        """The fitted damage of each part, by its name."""
        return {part.name: fit(part.levels, part.damage, self.profile.unit) for part in self.profile.parts}


def check_fits(profile: SensitivityProfile, target: Target) -> None:
    """Refuse a target of another kind than the levels of the profile.

    Raises:
        RequestError: another unit, another M of N:M, or bits that nobody measured.
    """
    if not _is_of_kind(profile, target):
        raise RequestError(
            f"the profile is of {_kind(profile.unit, profile.grid)} and the target of "
            f"{_kind(target.unit, target.grid)}: ask for a budget of that kind "
            f"({_asked_with(profile)}), or measure a profile of this one"
        )
    measured = {level for part in profile.parts for level in part.levels}
    missing = [level for level in target.levels if target.unit is Unit.BITS and level not in measured]
    if missing:
        found = ",".join(f"{level:g}" for level in sorted(measured))
        raise RequestError(
            f"{', '.join(f'{level:g}' for level in missing)} bits were not measured: add the levels to the "
            f"profile, or choose among those it has (--bit-choices {found})"
        )


def _asked_with(profile: SensitivityProfile) -> str:
    grid = profile.grid
    return f"--nm N:{grid.kept_of}" if isinstance(grid, KeptOfGrid) else _ASKED_WITH[profile.unit]


def _is_of_kind(profile: SensitivityProfile, target: Target) -> bool:
    grid = target.grid if isinstance(target.grid, KeptOfGrid) else None
    return profile.unit is target.unit and profile.grid == grid


def _kind(unit: Unit, grid: KeptOfGrid | BitsGrid | None) -> str:
    if isinstance(grid, KeptOfGrid):
        return f"N:{grid.kept_of}"
    return f"{unit} off a grid" if unit is Unit.DENSITY else unit.value


def part_groups(
    source: ProfiledModel, split: Partition, granularity: Granularity | None, target: Target
) -> tuple[Group, ...]:
    """The free linears, grouped by the parts they were measured in.

    Parts are joined where a block has to share one value, or linears that are tied lie in several; their
    damages add up.

    Raises:
        RequestError: a linear was not measured, a part is only partly free, a finer choice is asked for than
            was measured, or parts to be joined have no level in common.
    """
    part_of = {name: part for part in source.profile.parts for name in part.linears}
    groups: list[Group] = []
    for depth, block in enumerate(source.blocks):
        by_part: dict[str, list[LinearReport]] = {}
        for linear in filter(split.is_free, block.linears):
            by_part.setdefault(_part_of(linear, part_of, split).name, []).append(linear)
        for members in _joined_parts(by_part, block.name, granularity, target):
            parts = list({one.name: one for one in (part_of[linear.name] for linear in members)}.values())
            name = parts[0].name if len(parts) == 1 else joint_name(members)
            groups.append(
                Group(
                    name=block.name if granularity == "block" else name,
                    n_weights=sum(linear.n_weights for linear in members),
                    depth=depth,
                    metrics={},
                    linears=tuple(members),
                    damage=_joint_damage(parts, source, target),
                )
            )
    return tuple(groups)


def _part_of(linear: LinearReport, part_of: Mapping[str, PartDamage], split: Partition) -> PartDamage:
    """The part of a free linear, refused where there is none, or where not all of it is free."""
    if linear.name not in part_of:
        raise RequestError(
            f"{linear.name} is in no part of the profile: measure it too, or leave it alone with --skip"
        )
    part = part_of[linear.name]
    for name in part.linears:
        if name in split.skipped or name in split.pinned:
            raise RequestError(
                f"{name} is {split.fate(name)} but {linear.name} is {split.fate(linear.name)}, and their "
                f"damage was measured as one, {part.name}: pin or skip them together, or measure with a "
                f"finer --part than {part.kind}"
            )
    return part


def _joined_parts(
    by_part: Mapping[str, list[LinearReport]], block: str, granularity: Granularity | None, target: Target
) -> list[list[LinearReport]]:
    """The linears of one block that share a value: those of one part, and of all parts tied to it."""
    joined_so_far: list[tuple[set[str], list[LinearReport]]] = []
    for part, linears in by_part.items():
        keys = {block if granularity == "block" else tie_of(linear, target) for linear in linears}
        if granularity == "linear" and len(keys) > 1:
            raise RequestError(
                f"--granularity linear divides {part}, whose damage was measured as one: drop it, or measure "
                "with a finer --part"
            )
        tied = [one for one in joined_so_far if one[0] & keys]
        joined_so_far = [one for one in joined_so_far if not one[0] & keys]
        members = [linear for _, before in tied for linear in before]
        joined_so_far.append((keys.union(*(before for before, _ in tied)), [*members, *linears]))
    return [members for _, members in joined_so_far]


def _joint_damage(parts: Sequence[PartDamage], source: ProfiledModel, target: Target) -> DamageCurve:
    curves = [source.curves[part.name] for part in parts]
    damage = joined(curves, is_continuous=target.is_continuous)
    if damage is None:
        names = ", ".join(part.name for part in parts)
        raise RequestError(
            f"{names} share one value here, and fewer than two levels were measured of all of them: "
            "measure with a coarser --part, or leave out --granularity"
        )
    return damage


def predicted(source: ProfiledModel, values: Mapping[str, float], target: Target) -> tuple[float | None, int]:
    """The sum of the damages of the parts at the values of a plan (by linear; without those left alone).

    Returns:
        The sum, None where nothing is known of any part; and the number of parts that are not in it, because
        their linears differ, or have a value that was not measured.
    """
    known: list[float] = []
    n_unknown = 0
    for part in source.profile.parts:
        found = {values.get(name) for name in part.linears}
        damage = _damage_at(source.curves[part.name], found, is_continuous=target.is_continuous)
        known += [] if damage is None else [damage]
        n_unknown += damage is None
    return (fsum(known) if known else None), n_unknown


def _damage_at(curve: DamageCurve, values: set[float | None], *, is_continuous: bool) -> float | None:
    """Of one part, for the different values of its linears; None among them for one that is left alone."""
    if len(values) > 1:
        return None
    (value,) = values
    if value is None:
        return 0.0
    if value in curve.by_level:
        return curve.by_level[value]
    nearest = min(max(value, curve.levels[0]), curve.levels[-1])
    inside = is_continuous and abs(value - nearest) <= _ROUNDING
    return curve.at(nearest) if inside else None


def told(source: ProfiledModel, values: Mapping[str, float], target: Target) -> dict[str, JsonValue]:
    """What a plan from a profile records of it: what was measured, how much was fitted, what is predicted.

    Nothing where the profile is of another unit than the plan, from an allocator that reads no damage.
    """
    profile = source.profile
    if not _is_of_kind(profile, target):
        return {}
    n_fitted = sum(
        fitted != measured
        for part in profile.parts
        for fitted, measured in zip(source.curves[part.name].damage, part.damage, strict=True)
    )
    damage, n_unknown = predicted(source, values, target)
    kinds = sorted({part.kind for part in profile.parts}, key=list(PartKind).index)
    record: dict[str, JsonValue] = {
        "measure": profile.measure,
        "backend": profile.backend.name,
        "part": "+".join(kinds),
        "n_fitted": n_fitted,
    }
    if damage is not None:
        record[PREDICTED_DAMAGE] = damage
    return record | ({"n_parts_not_predicted": n_unknown} if n_unknown else {})
