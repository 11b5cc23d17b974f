"""The table of a sensitivity profile."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from owl_compress.cli.cells import KEPT, block_column, counts
from owl_compress.cli.sheet import Column, Sheet
from owl_compress.documents.sensitivity import PartDamage, PartKind, SensitivityProfile
from owl_compress.documents.units import Unit
from owl_compress.pages.words import number_format

_MOST_PARTS = 64
"""From here on parts are added up by block."""


_KINDS = {PartKind.TIED: "tied group"}
"""What a part is called where its kind is no noun."""


def sensitivity_table(profile: SensitivityProfile) -> Sheet:
    """Damage of each part at each level; of each block, added up, where there are many parts."""
    curves = {part.name: _damage_by_level(profile, part) for part in profile.parts}
    sizes = {part.name: part.n_weights for part in profile.parts}
    is_by_block, notes = len(curves) > _MOST_PARTS, list[str]()
    if is_by_block:
        notes.append(f"sums over the {len(curves):,} parts, each compressed alone; the file has them singly")
        curves, sizes = _by_block(profile, curves)
    first, more = block_column(list(curves))
    by_place = {label: place for curve in curves.values() for label, (place, _) in curve.items()}
    columns = [
        replace(first, heading="block" if is_by_block else "part"),
        Column("weights", counts(sizes.values()), is_optional=True),
    ]
    for label in sorted(by_place, key=by_place.__getitem__):
        # A level at a time: from the lowest to the highest, damages fall by orders of magnitude.
        form = _damage_format([curve[label][1] for curve in curves.values() if label in curve])
        cells = (format(curve[label][1], form) if label in curve else "" for curve in curves.values())
        columns.append(Column(label, tuple(cells)))
    title = f"Damage ({profile.measure}) of {profile.model.id} by {profile.backend.name}"
    title += f", {part_by_part(part.kind for part in profile.parts)}"
    return Sheet(title, tuple(columns), (*more, *notes, _what_levels_are(profile)))


def part_by_part(kinds: Iterable[PartKind]) -> str:
    """What is compressed at a time, or moves: "block by block"."""
    each = "+".join(dict.fromkeys(_KINDS.get(kind, kind) for kind in kinds))
    return f"{each} by {each}"


def _damage_format(damages: Sequence[float]) -> str:
    """The format of one column, in which only what is zero looks like it."""
    form = number_format(damages)
    is_lost = any(damage and not float(format(damage, form).replace(",", "")) for damage in damages)
    return ".2e" if is_lost else form


_Curve = dict[str, tuple[float, float]]
"""Level and damage, by the words for the level."""


def _damage_by_level(profile: SensitivityProfile, part: PartDamage) -> _Curve:
    def words(level: float) -> str:
        if profile.grid is not None:
            return profile.grid.shown(level)
        return f"{level:.3g}"

    pairs = zip(part.levels, part.damage, strict=True)
    is_share = profile.unit in KEPT
    return {words(level): (level, damage) for level, damage in pairs if not (is_share and level == 1)}


def _by_block(
    profile: SensitivityProfile, curves: dict[str, _Curve]
) -> tuple[dict[str, _Curve], dict[str, int]]:
    """Sums over the parts of a block, at the levels that all of them have."""
    found: dict[str, _Curve] = {}
    sizes: dict[str, int] = {}
    for block in dict.fromkeys(part.block for part in profile.parts):
        parts = [part for part in profile.parts if part.block == block]
        members = [curves[part.name] for part in parts]
        common = [label for label in members[0] if all(label in curve for curve in members)]
        found[block] = {
            label: (members[0][label][0], sum(curve[label][1] for curve in members)) for label in common
        }
        sizes[block] = sum(part.n_weights for part in parts)
    return found, sizes


def _what_levels_are(profile: SensitivityProfile) -> str:
    if profile.unit is Unit.BITS:
        return "columns are bits per weight"
    return "columns are N:M, N kept of M" if profile.grid else f"columns are the {KEPT[profile.unit]} kept"
