"""The parts of a block that a plan names, and what their linears weigh once units are gone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum

from torch import Tensor

from owl_compress.backends.unit_importance import LinearView, UnitScore
from owl_compress.compression.tasks import BlockTask
from owl_compress.documents.units import Sublayer
from owl_compress.errors import RequestError
from owl_compress.models.anatomy import Attention, BlockAnatomy, FeedForward, Slot, find_anatomy
from owl_compress.models.structure import LinearSite


@dataclass(frozen=True)
class UnitSlot:
    """A slot in numbers: how many of its units there are, and rows or columns of each."""

    n_units: int
    n_entries: int
    is_rows: bool


@dataclass(frozen=True)
class LinearUnits:
    """The units that lie in one linear of `shape` (out, in), by their kind."""

    shape: tuple[int, int]
    slots: Mapping[str, UnitSlot]

    @property
    def n_weights(self) -> int:
        """Number of weights as it is."""
        return self.shape[0] * self.shape[1]

    def n_kept(self, counts: Mapping[str, int]) -> int:
        """Number of weights left with `counts` units of each kind; none at all where a kind is gone."""
        rows, columns = self.shape
        for kind, slot in self.slots.items():
            if not counts[kind]:
                return 0
            lost = (slot.n_units - counts[kind]) * slot.n_entries
            rows, columns = (rows - lost, columns) if slot.is_rows else (rows, columns - lost)
        return rows * columns

    def share(self, counts: Mapping[str, int]) -> float:
        """Share of the weights left with `counts` units of each kind."""
        return self.n_kept(counts) / self.n_weights


_HEADS, _KV_HEADS, _CHANNELS = "heads", "kv_heads", "channels"


def head_counts(n_kv_heads: int, n_per_group: int) -> dict[str, int]:
    """Units by kind in an attention of `n_kv_heads` with `n_per_group` query heads each."""
    return {_HEADS: n_kv_heads * n_per_group, _KV_HEADS: n_kv_heads}


def channel_counts(n_channels: int) -> dict[str, int]:
    """Units by kind in a feed-forward."""
    return {_CHANNELS: n_channels}


def n_kept(linears: Mapping[str, LinearUnits], counts: Mapping[str, int]) -> int:
    """Weights of all `linears` with `counts` units of each kind."""
    return sum(units.n_kept(counts) for units in linears.values())


def units_of(slots: Mapping[str, Sequence[Slot]], sites: Mapping[str, LinearSite]) -> dict[str, LinearUnits]:
    """What lies in each linear that `slots` (by kind of unit) name."""
    found: dict[str, dict[str, UnitSlot]] = {}
    for kind, members in slots.items():
        for slot in members:
            n_units, n_entries = slot.index.shape
            kinds = found.setdefault(slot.linear, {})
            before = kinds[kind].n_entries if kind in kinds else 0  # gate and up in one linear, or k and v
            kinds[kind] = UnitSlot(n_units, before + n_entries, slot.axis == "out")
    return {name: LinearUnits(sites[name].shape, kinds) for name, kinds in found.items()}


@dataclass(frozen=True)
class PlannedBlock:
    """One block with the parts that its plan names; a part that the plan skips is None."""

    task: BlockTask
    anatomy: BlockAnatomy
    linears: Mapping[str, LinearView]
    attention: Attention | None
    mlp: FeedForward | None

    @property
    def attention_units(self) -> dict[str, LinearUnits]:
        """The linears of the attention."""
        if self.attention is None:
            return {}
        slots = {_HEADS: self.attention.queries, _KV_HEADS: self.attention.keys_values}
        return units_of(slots, self._sites)

    @property
    def mlp_units(self) -> dict[str, LinearUnits]:
        """The linears of the feed-forward."""
        return units_of({_CHANNELS: self.mlp.channels}, self._sites) if self.mlp else {}

    @property
    def _sites(self) -> dict[str, LinearSite]:
        return {name: view.task.site for name, view in self.linears.items()}

    def channel_importance(self, mlp: FeedForward, score: UnitScore) -> Tensor:
        """Importance of every channel, float64 [channels]."""
        return score.of(mlp.channels, self.linears, f"{self.task.site.name} channels")

    def head_importance(self, attention: Attention, score: UnitScore) -> tuple[Tensor, Tensor]:
        """Importance of query heads [heads] and of key-value heads [groups], float64."""
        name = self.task.site.name
        return (
            score.of(attention.queries, self.linears, f"{name} heads"),
            score.of(attention.keys_values, self.linears, f"{name} kv_heads"),
        )

    def asked(self, names: Mapping[str, LinearUnits]) -> float:
        """Weights that the plan keeps of the linears `names`."""
        return fsum(self.linears[name].task.budget * units.n_weights for name, units in names.items())


def find_parts(task: BlockTask) -> PlannedBlock:
    """The parts of a block that the plan names, whole.

    Raises:
        RequestError: a linear of the plan is in no part that was recognised, or the plan skips some linears
            of a part and not others.
    """
    anatomy = find_anatomy(task.site)
    linears = {
        linear.site.name: LinearView(linear, group.statistic)
        for group in task.groups
        for linear in group.linears
    }
    attention, mlp = anatomy.attention, anatomy.mlp
    members = {
        Sublayer.ATTENTION: _names((*attention.queries, *attention.keys_values))
        if attention
        else frozenset(),
        Sublayer.MLP: _names(mlp.channels) if mlp else frozenset(),
    }
    for name, view in linears.items():
        if not any(name in names for names in members.values()):
            raise RequestError(_unrecognised(anatomy, view.task.site))
    planned = {part: _is_planned(part, names, task, linears) for part, names in members.items()}
    return PlannedBlock(
        task,
        anatomy,
        linears,
        attention if planned[Sublayer.ATTENTION] else None,
        mlp if planned[Sublayer.MLP] else None,
    )


def _names(slots: Sequence[Slot]) -> frozenset[str]:
    return frozenset(slot.linear for slot in slots)


def _is_planned(
    part: Sublayer, names: frozenset[str], task: BlockTask, linears: Mapping[str, LinearView]
) -> bool:
    missing = sorted(names - linears.keys())
    if len(missing) == len(names):
        return False
    if missing:
        raise RequestError(
            f"the plan skips {missing[0]} and not the rest of the {part} of {task.site.name}, which loses "
            "heads or channels only as a whole: skip all of its linears or none"
        )
    return True


def _unrecognised(anatomy: BlockAnatomy, site: LinearSite) -> str:
    """The refusal for a linear of the plan that is in no known part."""
    usual = {"attn": Sublayer.ATTENTION, "mlp": Sublayer.MLP}.get(site.role.partition(".")[0])
    part = usual if usual in anatomy.unrecognised else next(iter(anatomy.unrecognised), None)
    if part is None:
        return f"{site.name} belongs neither to attention nor to a feed-forward: give --skip {site.name}"
    other = Sublayer.MLP if part is Sublayer.ATTENTION else Sublayer.ATTENTION
    is_known = (anatomy.mlp if other is Sublayer.MLP else anatomy.attention) is not None
    remedy = (
        f"use --parts {other}" if is_known else "use a backend that removes single weights, such as wanda"
    )
    return f"{part} of {anatomy.block} is not recognised: {anatomy.unrecognised[part]}; {remedy}"
