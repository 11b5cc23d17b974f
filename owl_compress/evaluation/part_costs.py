"""What the parts of blocks take in time at several widths: measured inside the running model.

All blocks are cut to each width in turn, from the widest down, on a copy; which units go makes no difference
to time. A part is timed from the first of its linears to the end of its output projection, summed over the
blocks of one shape: caches are then as cold, and the device as busy, as they are in use.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from owl_compress.documents.costs import CostTable, PartCosts, PartSeconds, WidthCost
from owl_compress.documents.measurements import LatencyShape
from owl_compress.documents.provenance import ModelIdentity
from owl_compress.documents.units import Sublayer
from owl_compress.documents.versions import versions
from owl_compress.errors import RequestError
from owl_compress.evaluation.latency import check_positions, device_name, token_ids
from owl_compress.evaluation.perplexity import placed
from owl_compress.evaluation.stopwatch import Stopwatch, now
from owl_compress.forms.narrowing import KeptUnits, keep_units_
from owl_compress.models.anatomy import Attention, BlockAnatomy, find_anatomy
from owl_compress.models.removable import part_linears
from owl_compress.models.state import cache_name
from owl_compress.models.structure import BlockSite, ModelStructure, find_structure
from owl_compress.progress import SILENT, Progress

_WARM_UPS, _RUNS = 1, 5
DEFAULT_WIDTHS = (0.125, 0.25, 0.5, 0.75)
"""Shares of the units of each part that are measured, besides all of them."""


@dataclass(frozen=True)
class _Part:
    """The attention, or the feed-forward, of all blocks in which it has these sizes."""

    part: Sublayer
    sizes: tuple[int, ...]
    blocks: tuple[str, ...]


def check_widths(widths: Sequence[float]) -> tuple[float, ...]:
    """Shares of units from the largest down; all of them need not be named.

    Raises:
        RequestError: none, or one that is no share.
    """
    for width in widths:
        if not 0 < width <= 1:
            raise RequestError(f"cost width {width:g} is outside (0, 1]: it is the share of units that stays")
    found = tuple(sorted(set(widths) - {1.0}, reverse=True))
    if not found:
        raise RequestError("a cost table needs a width besides 1 to tell what narrower blocks take")
    return found


def measure_costs(
    model: Any,
    identity: ModelIdentity,
    shape: LatencyShape,
    device: torch.device,
    widths: Sequence[float] = DEFAULT_WIDTHS,
    progress: Progress = SILENT,
    runs: int = _RUNS,
) -> CostTable:
    """Time the parts of all blocks of `model` whole, and at these shares of their units.

    Raises:
        RequestError: more positions than the model has, or no part whose heads or channels are known.
    """
    shares = (1.0, *check_widths(widths))
    check_positions(model, shape)
    copy = deepcopy(model)
    with placed(copy, device):
        parts, whole = _parts_of(find_structure(copy)), _counts_of(find_structure(copy))
        points: dict[_Part, list[WidthCost]] = {part: [] for part in parts}
        rest = PartSeconds(prefill=0, decode=0)
        for share in progress.track(shares, total=len(shares), what="timing widths"):
            _cut_(find_structure(copy), whole, share)
            laps = [_lap(copy, parts, shape, device) for _ in range(_WARM_UPS + runs)][_WARM_UPS:]
            if share == 1:
                rest = _median([lap.rest for lap in laps])
            units = _units_now(find_structure(copy), parts)
            for part in parts:
                seconds = _median([lap.parts[part] for lap in laps])
                points[part].append(WidthCost(seconds=seconds, **units[part]))
    costs, notes = _rising(points)
    return CostTable(
        model=identity,
        device=device_name(device),
        threads=torch.get_num_threads() if device.type == "cpu" else None,
        shape=shape,
        runs=runs,
        rest=rest,
        parts=costs,
        notes=notes,
        versions=versions(),
    )


def _parts_of(structure: ModelStructure) -> tuple[_Part, ...]:
    """The parts of the blocks, those of equal sizes together."""
    alike: dict[tuple[Sublayer, tuple[int, ...]], list[str]] = {}
    for site in structure.blocks:
        for part, names in part_linears(find_anatomy(site)).items():
            sizes = tuple(size for one in site.linears if one.name in names for size in one.shape)
            alike.setdefault((part, sizes), []).append(site.name)
    if not alike:
        raise RequestError("no block of this model has heads or channels that are known: no cost of widths")
    return tuple(_Part(part, sizes, tuple(blocks)) for (part, sizes), blocks in alike.items())


def _counts_of(structure: ModelStructure) -> dict[str, tuple[int, int, int]]:
    """Query heads, key-value heads and channels of every block."""
    return {site.name: _counts(find_anatomy(site)) for site in structure.blocks}


def _cut_(structure: ModelStructure, whole: Mapping[str, tuple[int, int, int]], share: float) -> None:
    """Leave the first units of every part, `share` of those that the `whole` model has."""
    for site in structure.blocks:
        anatomy = find_anatomy(site)
        n_heads, n_kv_heads, n_channels = whole[site.name]
        kept = KeptUnits()
        if anatomy.mlp is not None and n_channels:
            n_left = min(anatomy.mlp.n_channels, max(1, round(share * n_channels)))
            kept = KeptUnits(torch.arange(n_left))
        if anatomy.attention is not None and n_heads:
            heads, kv_heads = _first_heads(anatomy.attention, share * n_kv_heads, share * n_heads)
            kept = KeptUnits(kept.channels, heads, kv_heads)
        keep_units_(site, anatomy, kept)


def _counts(anatomy: BlockAnatomy) -> tuple[int, int, int]:
    attention, mlp = anatomy.attention, anatomy.mlp
    return (
        attention.n_heads if attention else 0,
        attention.n_kv_heads if attention else 0,
        mlp.n_channels if mlp else 0,
    )


def _first_heads(attention: Attention, n_kv: float, n_heads: float) -> tuple[torch.Tensor, torch.Tensor]:
    """About `n_kv` key-value heads and `n_heads` query heads, the same number for each, never none."""
    kv = min(attention.n_kv_heads, max(1, round(n_kv)))
    per_group = min(attention.n_queries_per_group, max(1, round(n_heads / kv)))
    first = torch.arange(kv)[:, None] * attention.n_queries_per_group  # [kv, 1]
    return (first + torch.arange(per_group)).flatten(), torch.arange(kv)


def _units_now(structure: ModelStructure, parts: Sequence[_Part]) -> dict[_Part, dict[str, int]]:
    """What the first block of each part has left of it."""
    sites = {site.name: site for site in structure.blocks}
    units = {}
    for part in parts:
        site = sites[part.blocks[0]]
        anatomy = find_anatomy(site)
        names = part_linears(anatomy)[part.part]
        counts = {"n_weights": sum(one.n_weights for one in site.linears if one.name in names)}
        if part.part is Sublayer.MLP and anatomy.mlp:
            counts |= {"channels": anatomy.mlp.n_channels}
        elif anatomy.attention:
            counts |= {"heads": anatomy.attention.n_heads, "kv_heads": anatomy.attention.n_kv_heads}
        units[part] = counts
    return units


@dataclass(frozen=True)
class _Lap:
    parts: Mapping[_Part, PartSeconds]
    rest: PartSeconds


def _lap(model: Any, parts: Sequence[_Part], shape: LatencyShape, device: torch.device) -> _Lap:
    """One prefill and the tokens after it; seconds of a part are those of one block."""
    ids, cache = token_ids(model, shape), cache_name(model)
    with torch.inference_mode(), _watches(model, parts, device) as watches:
        start = now(device)
        answer = model(input_ids=ids, use_cache=True)
        prefill = now(device) - start
        first = {part: watch.take() for part, watch in watches.items()}
        start = now(device)
        for _ in range(shape.new_tokens):
            token = answer.logits[:, -1:].argmax(dim=-1)  # [batch, 1]
            answer = model(input_ids=token, use_cache=True, **{cache: getattr(answer, cache)})
        decode = (now(device) - start) / shape.new_tokens
        later = {part: watch.take() / shape.new_tokens for part, watch in watches.items()}
    rest = PartSeconds(
        prefill=max(0.0, prefill - sum(first.values())), decode=max(0.0, decode - sum(later.values()))
    )
    each = {
        part: PartSeconds(
            prefill=max(0.0, first[part] / len(part.blocks)), decode=max(0.0, later[part] / len(part.blocks))
        )
        for part in parts
    }
    return _Lap(each, rest)


@contextmanager
def _watches(model: Any, parts: Sequence[_Part], device: torch.device) -> Iterator[dict[_Part, Stopwatch]]:
    """A stopwatch for each part, running while any of its blocks is between its first and last linear."""
    sites = {site.name: site for site in find_structure(model).blocks}
    watches = {part: Stopwatch(device) for part in parts}
    with ExitStack() as hooks:
        for part, watch in watches.items():
            for name in part.blocks:
                begins, end = _ends(sites[name], part.part)
                for module in begins:
                    hooks.callback(module.register_forward_pre_hook(watch.begin).remove)
                hooks.callback(end.register_forward_hook(watch.end).remove)
        yield watches


def _ends(site: BlockSite, part: Sublayer) -> tuple[list[Any], Any]:
    """The linears of a part, of which the first to be called begins it, and the one that ends it."""
    anatomy = find_anatomy(site)
    found = anatomy.attention if part is Sublayer.ATTENTION else anatomy.mlp
    if found is None:
        raise TypeError(f"{site.name} has no {part}")
    names = part_linears(anatomy)[part]
    modules = {one.name: one.module for one in site.linears}
    return [modules[name] for name in names if name != found.output], modules[found.output]


def _median(seconds: Sequence[PartSeconds]) -> PartSeconds:
    return PartSeconds(
        prefill=median(one.prefill for one in seconds), decode=median(one.decode for one in seconds)
    )


def _rising(points: Mapping[_Part, Sequence[WidthCost]]) -> tuple[tuple[PartCosts, ...], tuple[str, ...]]:
    """Widths from the narrowest, no two alike, whose time never falls, and a note on what was smoothed."""
    costs, n_smoothed = [], 0
    for part, measured in points.items():
        by_weights = {point.n_weights: point for point in measured}
        rising: list[WidthCost] = []
        for _, point in sorted(by_weights.items()):
            least = rising[-1].seconds if rising else point.seconds
            seconds = PartSeconds(
                prefill=max(least.prefill, point.seconds.prefill),
                decode=max(least.decode, point.seconds.decode),
            )
            n_smoothed += seconds != point.seconds
            rising.append(point.model_copy(update={"seconds": seconds}))
        costs.append(PartCosts(part=part.part, blocks=part.blocks, widths=tuple(rising)))
    note = f"{n_smoothed} widths took less time than a narrower one, and are said to take as much"
    return tuple(costs), ((note,) if n_smoothed else ())
