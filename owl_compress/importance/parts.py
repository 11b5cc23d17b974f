"""The parts of a model that are compressed one at a time."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from owl_compress.documents.roles import fused_role, sublayer_of
from owl_compress.documents.sensitivity import PartKind
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.models.anatomy import find_roles
from owl_compress.models.structure import BlockSite, LinearSite, ModelStructure

_MOST_NAMED = 4


@dataclass(frozen=True)
class Part:
    """Linears of one block that get one level."""

    name: str
    kind: PartKind
    block: str
    linears: tuple[LinearSite, ...]

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return sum(linear.n_weights for linear in self.linears)

    def at(self, level: float) -> dict[str, float]:
        """Budgets of its linears, by name."""
        return {linear.name: level for linear in self.linears}


def usual_kind(unit: Unit) -> PartKind:
    """What is worth telling apart in each unit.

    Blocks for masks, where per-linear budgets gain little for their cost; attention and feed-forward for
    widths, whose damage for the same weights differs most; what servers fuse for bits, which cannot differ.
    """
    return {Unit.DENSITY: PartKind.BLOCK, Unit.WIDTH: PartKind.SUBLAYER, Unit.BITS: PartKind.TIED}[unit]


def check_kind(kind: PartKind, unit: Unit) -> None:
    """Refuse parts that a unit cannot tell apart.

    Raises:
        RequestError: parts below a sublayer in widths, where linears lose heads or channels together.
    """
    if unit is Unit.WIDTH and kind not in {PartKind.BLOCK, PartKind.SUBLAYER}:
        raise RequestError(
            f"--part {kind}: attention and feed-forward lose heads and channels as a whole; use "
            f"{PartKind.SUBLAYER} or {PartKind.BLOCK}"
        )


def find_parts(
    structure: ModelStructure, kind: PartKind, names: Collection[str] | None = None
) -> tuple[Part, ...]:
    """The parts of all blocks in order; linears whose name is not in `names` are in none."""
    roles = find_roles(structure)
    parts: list[Part] = []
    for site in structure.blocks:
        members: dict[str, list[LinearSite]] = {}
        for linear in site.linears:
            if names is None or linear.name in names:
                members.setdefault(_key(linear, roles[linear.name], kind), []).append(linear)
        parts += [
            Part(_name(site, key, linears, kind), kind, site.name, tuple(linears))
            for key, linears in members.items()
        ]
    return tuple(parts)


def _key(linear: LinearSite, role: str, kind: PartKind) -> str:
    """Equal for linears of one part within a block."""
    keys: Mapping[PartKind, str] = {
        PartKind.BLOCK: "",
        PartKind.SUBLAYER: sublayer_of(role),
        PartKind.TIED: fused_role(role) or linear.name,
        PartKind.ROLE: role,
        PartKind.LINEAR: linear.name,
    }
    return keys[kind]


def _name(site: BlockSite, key: str, linears: list[LinearSite], kind: PartKind) -> str:
    if kind is PartKind.BLOCK:
        return site.name
    if kind is PartKind.SUBLAYER:
        return f"{site.name} {key}"
    first, *others = (linear.name for linear in linears)
    # A handful of linears is told by their names, the experts of a block by their role.
    if len(others) < _MOST_NAMED:
        return "+".join([first, *(name.rpartition(".")[2] for name in others)])
    return f"{site.name} {key}"
