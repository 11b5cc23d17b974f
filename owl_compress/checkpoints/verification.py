"""Does a saved checkpoint keep what was asked? Counted group by group from its tensors."""

import re
from pathlib import Path

from torch import Tensor, nn

from owl_compress.checkpoints.hub import quietly_explained
from owl_compress.checkpoints.reading import CheckpointSource
from owl_compress.checkpoints.stored_forms import StoredForm, recognised
from owl_compress.checkpoints.tensors import tensor_from_checkpoint
from owl_compress.documents.measurements import Verification, Violation
from owl_compress.documents.plan import Plan
from owl_compress.documents.units import KeptOfGrid, Unit, kept_weights
from owl_compress.errors import RequestError
from owl_compress.models.structure import find_structure, in_rows

_PATTERN = re.compile(r"(\d+):(\d+)")


def verify(folder: Path, pattern: str = "plan", *, trust_remote_code: bool = False) -> Verification:
    """Count the non-zero weights of every linear of the checkpoint in `folder`, one tensor at a time.

    `pattern` is "plan" (what the plan.json in the folder asks of each linear: N kept of every M inputs, or a
    number of weights) or a fixed N:M such as "2:4", N *kept* of every M consecutive inputs. Code in the
    folder is run with `trust_remote_code` alone.

    Raises:
        RequestError: no checkpoint, one that needs code to be understood, no plan, a plan that sparsity
            cannot be counted by, or M that does not divide the inputs of a linear.
    """
    if not (folder / "config.json").is_file():
        raise RequestError(f"{folder} holds no checkpoint: verify takes a folder that compress or run wrote")
    with quietly_explained(str(folder)):
        source = CheckpointSource.of_folder(folder, trust_remote_code=trust_remote_code)
        form = recognised(source)
        if not isinstance(form, StoredForm):
            form.check_loadable(source)
            raise RequestError(f"{folder} holds a {form.name}: verify takes sparse checkpoints")
        return form.verify(source, pattern)


def count_groups(folder: Path, model: nn.Module, pattern: str) -> Verification:
    """Count the saved tensors that are the linears of `model`, whose own weights are not looked at.

    Raises:
        RequestError: see `verify`.
    """
    sites = {linear.name: linear for linear in find_structure(model).linears}
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
    return Verification(pattern=pattern, linears=len(limits), groups=n_groups, violations=tuple(violations))


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
        return {budget.name: (plan.grid.kept(budget.value), group) for budget in plan.budgets}
    return {budget.name: (kept_weights(budget.value, budget.n_weights), None) for budget in plan.budgets}


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
