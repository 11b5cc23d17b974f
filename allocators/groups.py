"""From a report to the groups that receive a value: skips and pins taken out, fused linears tied."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import groupby
from math import fsum
from typing import Protocol

from owl_compress.allocators.base import Group
from owl_compress.allocators.target import Granularity, Target
from owl_compress.documents.coverage import Coverage
from owl_compress.documents.provenance import ModelIdentity
from owl_compress.documents.report import BlockReport, LinearReport
from owl_compress.documents.roles import fused_role, sublayer_of
from owl_compress.documents.units import Sublayer, Unit
from owl_compress.errors import RequestError


@dataclass(frozen=True)
class Partition:
    """Every linear of the report is skipped, pinned to a value, or free, by name."""

    skipped: frozenset[str]
    pinned: Mapping[str, float]

    def is_free(self, linear: LinearReport) -> bool:
        """True where the allocator decides."""
        return linear.name not in self.skipped and linear.name not in self.pinned

    def fate(self, name: str) -> str:
        """What happens to a linear, in words."""
        if name in self.skipped:
            return "skipped"
        return f"set to {self.pinned[name]:g}" if name in self.pinned else "left to the allocator"


class Account(Protocol):
    """The blocks of a model and their linears, as a report lists them."""

    @property
    def model(self) -> ModelIdentity:
        """Which model."""
        ...

    @property
    def blocks(self) -> tuple[BlockReport, ...]:
        """In the order of execution."""
        ...

    @property
    def coverage(self) -> Coverage | None:
        """What of the weights in the blocks is in this account."""
        ...


def partition(report: Account, target: Target) -> Partition:
    """Apply skips and pins.

    A skip wins over a pattern of pins; among pins the name of a linear wins over that of a block, and a name
    over a glob pattern; of two alike the later wins.

    Raises:
        RequestError: a name matches nothing, a linear is skipped and pinned by name, everything is skipped,
            or linears that have to stay alike would not.
    """
    skipped = _protected(report, target) | frozenset(
        name for pattern in target.skips for name in _matching(pattern, report, "--skip")
    )
    pinned: dict[str, float] = {}
    linears = {linear.name for block in report.blocks for linear in block.linears}
    blocks = {block.name for block in report.blocks}
    for pattern, value in sorted(
        target.pins.items(), key=lambda pin: (pin[0] in blocks) + 2 * (pin[0] in linears)
    ):
        named = _matching(pattern, report, "--set")
        both = named & skipped
        if both == named:
            raise RequestError(f"--set {pattern} names only linears that are skipped: drop one of the two")
        if both and pattern in blocks | linears:
            raise RequestError(
                f"{min(both)} is left alone by --skip, --protect-first, --protect-last or --parts, and set "
                f"by --set {pattern}: drop one of the two"
            )
        pinned |= dict.fromkeys(named - skipped, value)
    if linears <= skipped:
        raise RequestError("every linear is skipped: nothing is left to compress")
    result = Partition(skipped, pinned)
    for block in report.blocks:
        _check_ties(block, result, target)
    return result


def _protected(report: Account, target: Target) -> frozenset[str]:
    """The linears of the first and last blocks, and of the parts, that are to stay as they are."""
    n_blocks = len(report.blocks)
    if target.protect_first + target.protect_last >= n_blocks:
        raise RequestError(
            f"--protect-first {target.protect_first} and --protect-last {target.protect_last} leave none of "
            f"{n_blocks} blocks to compress: lower them"
        )
    inner = range(target.protect_first, n_blocks - target.protect_last)
    everything = set(target.parts) == set(Sublayer)
    known = {sublayer_of(linear.role) for block in report.blocks for linear in block.linears}
    for part in target.parts if not everything else ():
        if part not in known:
            raise RequestError(
                f"--parts {part}: no linear of family {report.model.family!r} is known to be of it; name the "
                "linears that are to stay with --skip"
            )
    return frozenset(
        linear.name
        for index, block in enumerate(report.blocks)
        for linear in block.linears
        if index not in inner or not (everything or sublayer_of(linear.role) in target.parts)
    )


def build_groups(
    report: Account, split: Partition, granularity: Granularity, target: Target
) -> tuple[Group, ...]:
    """The free linears, grouped by block, or one by one with those tied that have to stay alike."""
    groups: list[Group] = []
    for depth, block in enumerate(report.blocks):
        free = [linear for linear in block.linears if split.is_free(linear)]
        if granularity == "block":
            groups += [_group(block.name, depth, block.metrics, free)] if free else []
            continue
        tied: dict[str, list[LinearReport]] = {}
        for linear in free:
            tied.setdefault(tie_of(linear, target), []).append(linear)
        groups += [_group(joint_name(same), depth, _joint_metrics(same), same) for same in tied.values()]
    return tuple(groups)


def _group(name: str, depth: int, metrics: Mapping[str, float], linears: Sequence[LinearReport]) -> Group:
    return Group(name, sum(linear.n_weights for linear in linears), depth, metrics, tuple(linears))


def tie_of(linear: LinearReport, target: Target) -> str:
    """What a linear shares its value with: bits within what servers fuse, widths within attention or FFN."""
    match target.unit:
        case Unit.BITS if target.tie:
            return fused_role(linear.role) or linear.name
        case Unit.WIDTH:
            return sublayer_of(linear.role)
        case _:
            return linear.name


def _check_ties(block: BlockReport, split: Partition, target: Target) -> None:
    members = sorted(block.linears, key=lambda linear: tie_of(linear, target))
    for _, tied in groupby(members, key=lambda linear: tie_of(linear, target)):
        first, *others = tied
        for other in others:
            if split.fate(first.name) != split.fate(other.name):
                untie = ", or untie them with --no-tie" if target.unit is Unit.BITS else ""
                fate, other_fate = split.fate(first.name), split.fate(other.name)
                raise RequestError(
                    f"{first.name} is {fate} but {other.name} is {other_fate}, and both need the same "
                    f"{target.unit}: pin or skip them together{untie}"
                )


def joint_name(linears: Sequence[LinearReport]) -> str:
    """What linears of one block that share a value are called together."""
    first, *others = (linear.name for linear in linears)
    return "+".join([first, *(name.rpartition(".")[2] for name in others)])


def _joint_metrics(linears: Sequence[LinearReport]) -> Mapping[str, float]:
    if len(linears) == 1:
        return linears[0].metrics
    total = sum(linear.n_weights for linear in linears)
    shared = set(linears[0].metrics).intersection(*(linear.metrics for linear in linears))
    return {
        metric: fsum(linear.n_weights * linear.metrics[metric] for linear in linears) / total
        for metric in sorted(shared)
    }


def _names(pattern: str, linears: Collection[str]) -> bool:
    """Whether a name or glob pattern stands for any of these."""
    return any(fnmatchcase(name, pattern) for name in linears)


def _matching(pattern: str, report: Account, option: str) -> frozenset[str]:
    """Names of the linears that a block name, linear name or glob pattern stands for."""
    found = frozenset(
        linear.name
        for block in report.blocks
        for linear in block.linears
        if pattern in (block.name, linear.name)
        or fnmatchcase(block.name, pattern)
        or fnmatchcase(linear.name, pattern)
    )
    if not found and not (report.coverage and _names(pattern, report.coverage.linears)):
        known = [name for block in report.blocks for name in (block.name, *(x.name for x in block.linears))]
        close = get_close_matches(pattern, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"names look like {known[0]!r} and {known[1]!r}"
        raise RequestError(f"{option} {pattern!r} matches no block or linear of the model: {hint}")
    return found
