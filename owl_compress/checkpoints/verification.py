"""Does a saved checkpoint keep what was asked? Counted group by group from its tensors."""

import re
from dataclasses import asdict, dataclass
from math import floor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from owl_compress.checkpoints.hub import quietly_explained
from owl_compress.checkpoints.narrow import narrowed_class
from owl_compress.checkpoints.packed import is_packed
from owl_compress.checkpoints.tensors import tensor_from_checkpoint
from owl_compress.documents.plan import Plan
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.errors import RequestError
from owl_compress.models.structure import LinearSite, find_structure, in_rows

_PATTERN = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True)
class Violation:
    """One linear that keeps more than it may: in how many groups, and the first of them.

    `row` and `first_input` say where that group begins; without an N:M pattern a group is a whole linear.
    """

    linear: str
    groups: int
    violating: int
    row: int
    first_input: int
    kept: int
    allowed: int


@dataclass(frozen=True)
class Verification:
    """What a count of the saved tensors found."""

    pattern: str
    linears: int
    groups: int
    violations: tuple[Violation, ...]

    @property
    def ok(self) -> bool:
        """Whether every group keeps no more than it may."""
        return not self.violations

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ok": self.ok,
            "pattern": self.pattern,
            "linears": self.linears,
            "groups": self.groups,
            "violations": [asdict(violation) for violation in self.violations],
        }


def verify(folder: Path, pattern: str = "plan") -> Verification:
    """Count the non-zero weights of every linear of the checkpoint in `folder`, one tensor at a time.

    `pattern` is "plan" (what the plan.json in the folder asks of each linear: N kept of every M inputs, or a
    number of weights) or a fixed N:M such as "2:4", N *kept* of every M consecutive inputs.

    Raises:
        RequestError: no checkpoint, no plan, a plan that sparsity cannot be counted by, or M that does not
            divide the inputs of a linear.
    """
    sites = _sites(folder)
    limits = _plan_limits(folder) if pattern == "plan" else dict.fromkeys(sites, _fixed(pattern))
    violations = []
    n_groups = 0
    for name, (kept, group) in limits.items():
        if name not in sites:
            raise RequestError(f"plan names linear {name!r}, which the model in {folder} does not have")
        weight = in_rows(sites[name].module, tensor_from_checkpoint(folder, name))
        groups = _groups(name, weight, group)
        n_groups += len(groups)
        violation = _violation(name, groups, kept, weight.shape[1])
        if violation:
            violations.append(violation)
    return Verification(pattern, len(limits), n_groups, tuple(violations))


def _sites(folder: Path) -> dict[str, LinearSite]:
    """The linears of the model that the folder's configuration describes, without loading its weights."""
    if not (folder / "config.json").is_file():
        raise RequestError(f"{folder} holds no checkpoint: verify takes a folder that compress or run wrote")
    with quietly_explained(str(folder)):
        config = AutoConfig.from_pretrained(folder)
        if is_packed(config):
            raise RequestError(
                f"{folder} holds packed codes and no zeros to count: verify takes sparse checkpoints"
            )
        narrow = narrowed_class(config, str(folder))
        with torch.device("meta"):
            model = narrow(config) if narrow else AutoModelForCausalLM.from_config(config)
    return {linear.name: linear for linear in find_structure(model).linears}


def _plan_limits(folder: Path) -> dict[str, tuple[int, int | None]]:
    """For each linear of the plan: how many may be kept, of how many inputs (None: of the whole linear)."""
    if not (folder / "plan.json").is_file():
        raise RequestError(
            f"{folder} has no plan.json to verify against: name a pattern, as in --pattern 2:4"
        )
    plan = Plan.read(folder / "plan.json")
    if plan.unit is not Unit.DENSITY:
        raise RequestError(
            f"the plan in {folder} is in {plan.unit}: verify counts the zeros of sparse checkpoints"
        )
    if isinstance(plan.grid, KeptOfGrid):
        group = plan.grid.kept_of
        return {budget.name: (round(budget.value * group), group) for budget in plan.budgets}
    return {budget.name: (floor(budget.value * budget.n_weights), None) for budget in plan.budgets}


def _fixed(pattern: str) -> tuple[int, int]:
    found = _PATTERN.fullmatch(pattern)
    if not found or not 0 < int(found[1]) <= int(found[2]):
        raise RequestError(f"pattern {pattern!r} is neither 'plan' nor N:M (N kept of every M), such as 2:4")
    return int(found[1]), int(found[2])


def _groups(name: str, weight: Tensor, group: int | None) -> Tensor:
    """`weight`, shape [out, in], as groups of consecutive inputs, shape [groups, M]."""
    if group is None:
        return weight.reshape(1, -1)
    if weight.shape[1] % group:
        raise RequestError(f"{name} has {weight.shape[1]} inputs, which groups of {group} do not divide")
    return weight.reshape(-1, group)


def _violation(name: str, groups: Tensor, allowed: int, n_inputs: int) -> Violation | None:
    kept = (groups != 0).sum(dim=1)
    broken = (kept > allowed).nonzero().flatten()
    if not len(broken):
        return None
    start = int(broken[0]) * groups.shape[1]
    return Violation(
        linear=name,
        groups=len(groups),
        violating=len(broken),
        row=start // n_inputs,
        first_input=start % n_inputs,
        kept=int(kept[broken[0]]),
        allowed=allowed,
    )


def check_two_of_four(folder: Path) -> None:
    """Refuse a checkpoint that keeps more than 2 of 4 weights anywhere, counted from its tensors.

    Raises:
        RequestError: no folder, or the first linear that breaks the pattern.
    """
    found = verify(folder, "2:4")
    if not found.ok:
        first = found.violations[0]
        raise RequestError(
            f"kernel 'semi-structured' needs 2 of every 4 weights at most, and {first.linear} in {folder} "
            f"keeps more in {first.violating} of {first.groups} groups ({len(found.violations)} such "
            "linears): make it with --nm 2:4 --allocator uniform"
        )
