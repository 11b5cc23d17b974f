"""Does a saved checkpoint keep what was asked? Counted from its tensors, and never believed of the plan."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from owl_compress.checkpoints.hub import quietly_explained
from owl_compress.checkpoints.reading import CheckpointSource
from owl_compress.checkpoints.stored_forms import StoredForm, recognised
from owl_compress.checkpoints.tensors import tensor_from_checkpoint
from owl_compress.documents.measurements import Verification, Violation
from owl_compress.documents.plan import LinearBudget, Plan
from owl_compress.documents.result import Result
from owl_compress.documents.units import KeptOfGrid, Unit, kept_weights
from owl_compress.errors import RequestError
from owl_compress.models.structure import LinearSite, find_structure, in_rows

_PATTERN = re.compile(r"(\d{1,9}):(\d{1,9})")
_PLAN = "plan"

BitsOf = Callable[[LinearSite], int | None]
"""The width, in bits, of the codes that are stored for a linear; None where its weights are stored."""


def verify(folder: Path, pattern: str = _PLAN, *, trust_remote_code: bool = False) -> Verification:
    """Compare the saved tensors of the checkpoint in `folder` with what they may hold, one at a time.

    `pattern` is "plan" (what the plan.json in the folder asks: of each linear N kept of every M inputs, a
    number of weights, or bits; of the model the weights that are left of what was removed whole) or a fixed
    N:M such as "2:4", N *kept* of every M consecutive inputs. Code in the folder is run with
    `trust_remote_code` alone.

    Raises:
        RequestError: no checkpoint, one that needs code to be understood, no plan, a plan of another model or
            one that these weights cannot be compared with, or M that does not divide the inputs of a linear.
    """
    if not (folder / "config.json").is_file():
        raise RequestError(f"{folder} holds no checkpoint: verify takes a folder that compress or run wrote")
    with quietly_explained(str(folder)):
        source = CheckpointSource.of_folder(folder, trust_remote_code=trust_remote_code)
        form = recognised(source)
        if not isinstance(form, StoredForm):
            form.check_loadable(source)
            raise RequestError(f"{folder} holds a {form.name}: verify takes a folder that we wrote")
        return form.verify(source, pattern)


def count_groups(folder: Path, model: nn.Module, pattern: str) -> Verification:
    """Compare saved weights that are stored as such with `pattern`.

    The saved tensors are those of the linears of `model`, whose own weights are not looked at.

    Raises:
        RequestError: see `verify`.
    """
    if pattern != _PLAN:
        kept, of = _fixed(pattern)
        linears = list(find_structure(model).linears)
        counts = [_zeros(linear, _weight(folder, linear), kept, of) for linear in linears]
        return _told(pattern, counts, linears, "counted")
    checked = _Checked.of(folder, model)
    match checked.plan.unit:
        case Unit.DENSITY:
            grid = checked.plan.grid
            group = grid.kept_of if isinstance(grid, KeptOfGrid) else None
            return checked.each(lambda site, value: _density(folder, site, value, group), "counted")
        case Unit.BITS:
            size = _group_size(folder)
            return checked.each(lambda site, value: _levels(folder, site, int(value), size), "counted")
        case _:
            return checked.widths(folder)


def compare_bits(folder: Path, model: nn.Module, pattern: str, bits_of: BitsOf) -> Verification:
    """Compare the widths of stored codes with the plan.

    Raises:
        RequestError: see `verify`; or a pattern of zeros, which codes do not have.
    """
    if pattern != _PLAN:
        _fixed(pattern)
        raise RequestError(
            f"{folder} holds packed codes and no zeros to count: verify them against their plan, without "
            "--pattern"
        )
    checked = _Checked.of(folder, model)
    if checked.plan.unit is not Unit.BITS:
        raise RequestError(f"the plan in {folder} is in {checked.plan.unit}, and the weights are codes")

    def compare(site: LinearSite, value: float) -> "_Count":
        bits = bits_of(site)
        if bits is None:
            return _levels(folder, site, int(value), _group_size(folder))
        what = f"stored in {bits} bits, the plan says {value:g}"
        return _Count(1, Violation.of(site.name, what, bits, int(value)) if bits != value else None)

    return checked.each(compare, "compared by their stored bits")


@dataclass(frozen=True)
class _Count:
    """What was counted of one linear: in how many groups, and what is wrong in them."""

    groups: int
    violation: Violation | None


@dataclass(frozen=True)
class _Checked:
    """A plan beside the linears that the checkpoint really has.

    Attributes:
        plan: as it lies in the folder.
        sites: all linears of all blocks, found in the model, those without a weight left among them.
        spared: linears that the plan says get no budget: skipped, or such as no method could give one to.
        violations: linears that the plan leaves out without saying so.
    """

    plan: Plan
    sites: Mapping[str, LinearSite]
    spared: frozenset[str]
    violations: tuple[Violation, ...]

    @classmethod
    def of(cls, folder: Path, model: nn.Module) -> "_Checked":
        if not (folder / "plan.json").is_file():
            raise RequestError(
                f"{folder} has no plan.json to verify against: name a pattern, as in --pattern 2:4"
            )
        plan = Plan.read(folder / "plan.json")
        blocks = find_structure(model).blocks
        sites = {linear.name: linear for block in blocks for linear in block.all_linears}
        spared = frozenset(plan.skipped) | (plan.coverage.linears if plan.coverage else frozenset())
        known = {budget.name for budget in plan.budgets} | spared
        for name in (*(budget.name for budget in plan.budgets), *plan.skipped):
            if name not in sites:
                raise RequestError(f"plan names linear {name!r}, which the model in {folder} does not have")
        left_out = "has no budget in the plan, which does not skip it either"
        return cls(
            plan,
            sites,
            spared - {budget.name for budget in plan.budgets},
            tuple(
                Violation.of(name, left_out, site.n_weights, 0)
                for name, site in sites.items()
                if name not in known and site.n_weights
            ),
        )

    def each(self, count: Callable[[LinearSite, float], _Count], how: str) -> Verification:
        """Count every linear of the plan, at its own size."""
        budgets = [budget for budget in self.plan.budgets if self.sites[budget.name].n_weights]
        counts = [
            _Count(found.groups, _inflated(budget, self.sites[budget.name]) or found.violation)
            for budget in budgets
            for found in [count(self.sites[budget.name], budget.value)]
        ]
        linears = [self.sites[budget.name] for budget in budgets]
        return self._told(counts, linears, how)

    def widths(self, folder: Path) -> Verification:
        """Compare what is left with what the plan leaves of all: it rounds to whole heads and channels."""
        counts, left, asked = [], 0, 0.0
        for budget in self.plan.budgets:
            site = self.sites[budget.name]
            n_weights = _weight(folder, site).numel() if site.n_weights else 0
            left, asked = left + n_weights, asked + budget.value * budget.n_weights
            what = f"has {n_weights:,} weights, more than the {budget.n_weights:,} of the plan"
            grown = n_weights > budget.n_weights
            counts.append(
                _Count(1, Violation.of(site.name, what, n_weights, budget.n_weights) if grown else None)
            )
        if left > asked * (1 + 1e-9):
            what = f"all linears of the plan keep {left:,} weights, more than the {asked:,.0f} it allows"
            counts.append(_Count(0, Violation.of(self.plan.budgets[0].name, what, left, int(asked))))
        return self._told(counts, [self.sites[budget.name] for budget in self.plan.budgets], "measured")

    def _told(self, counts: list[_Count], linears: list[LinearSite], how: str) -> Verification:
        found = _told(_PLAN, counts, linears, how)
        skipped = [name for name in self.spared if name in self.sites and self.sites[name].n_weights]
        words = f"; {len(skipped)} that the plan skips were not looked at" if skipped else ""
        return found.model_copy(
            update={
                "violations": (*self.violations, *found.violations),
                "skipped": len(skipped),
                "summary": f"{found.summary}{words}",
            }
        )


def _told(pattern: str, counts: Iterable[_Count], linears: list[LinearSite], how: str) -> Verification:
    counts = list(counts)
    n_weights = sum(linear.n_weights for linear in linears)
    n_groups = sum(count.groups for count in counts)
    return Verification(
        pattern=pattern,
        linears=len(linears),
        groups=n_groups,
        violations=tuple(count.violation for count in counts if count.violation),
        summary=f"{len(linears)} linears with {n_weights:,} weights {how}, in {n_groups:,} groups",
    )


def _inflated(budget: LinearBudget, site: LinearSite) -> Violation | None:
    if budget.n_weights == site.n_weights:
        return None
    what = f"has {site.n_weights:,} weights, the plan says {budget.n_weights:,}"
    return Violation.of(site.name, what, site.n_weights, budget.n_weights)


def _weight(folder: Path, site: LinearSite) -> Tensor:
    """The saved weight, shape [out, in].

    Raises:
        RequestError: its shape is not the one that the configuration describes.
    """
    weight = in_rows(site.module, tensor_from_checkpoint(folder, site.name))
    if tuple(weight.shape) != site.shape:
        raise RequestError(
            f"{site.name} in {folder} has shape {tuple(weight.shape)}, {site.shape} by config.json: the "
            "checkpoint is broken or its config is another model's"
        )
    return weight


def _fixed(pattern: str) -> tuple[int, int]:
    found = _PATTERN.fullmatch(pattern)
    if not found or not 0 < int(found[1]) <= int(found[2]):
        raise RequestError(f"pattern {pattern!r} is neither 'plan' nor N:M (N kept of every M), such as 2:4")
    return int(found[1]), int(found[2])


def _density(folder: Path, site: LinearSite, value: float, group: int | None) -> _Count:
    weight = _weight(folder, site)
    kept = KeptOfGrid(kept_of=group).kept(value) if group else kept_weights(value, weight.numel())
    return _zeros(site, weight, kept, group)


def _zeros(site: LinearSite, weight: Tensor, allowed: int, group: int | None) -> _Count:
    """Count what is not zero in groups of consecutive inputs; None: in the whole linear."""
    groups = weight.reshape(1, -1) if group is None else _grouped(site.name, weight, group)
    return _exceeding(site.name, (groups != 0).sum(dim=1), allowed, groups.shape[1], weight.shape[1])


def _levels(folder: Path, site: LinearSite, bits: int, group_size: int | None) -> _Count:
    """Count the different values in each group that shares a scale: codes of so many bits have no more."""
    weight = _weight(folder, site)
    size = group_size or weight.shape[1]
    ordered = _grouped(site.name, weight, size).float().sort(dim=1).values
    different = 1 + (ordered.diff(dim=1) != 0).sum(dim=1)
    return _exceeding(site.name, different, 2**bits, size, weight.shape[1], "holds more values than its bits")


def _grouped(name: str, weight: Tensor, group: int) -> Tensor:
    """`weight`, shape [out, in], as groups of consecutive inputs, shape [groups, M]."""
    if weight.shape[1] % group:
        raise RequestError(f"{name} has {weight.shape[1]} inputs, which groups of {group} do not divide")
    return weight.reshape(-1, group)


def _exceeding(name: str, counts: Tensor, allowed: int, size: int, n_inputs: int, what: str = "") -> _Count:
    broken = torch.nonzero(counts > allowed).flatten()
    if not len(broken):
        return _Count(len(counts), None)
    start = int(broken[0]) * size
    violation = Violation(
        linear=name,
        groups=len(counts),
        violating=len(broken),
        row=start // n_inputs,
        first_input=start % n_inputs,
        kept=int(counts[broken[0]]),
        allowed=allowed,
        what=what,
    )
    return _Count(len(counts), violation)


def _group_size(folder: Path) -> int | None:
    """How many inputs share a scale, as result.json says; None: all of them."""
    path = folder / "result.json"
    if not path.is_file():
        raise RequestError(f"{folder} has no result.json, which says how many inputs share a scale")
    size = Result.read(path).backend.parameters.get("group_size")
    return size if isinstance(size, int) and size > 0 else None
