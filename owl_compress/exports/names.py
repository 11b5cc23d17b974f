"""Names of linears as patterns, budgets by value, and what tools cannot do with them."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from owl_compress.documents.plan import LinearBudget, Plan
from owl_compress.errors import RequestError, shown

FUSED = {("q_proj", "k_proj", "v_proj"): "qkv_proj", ("gate_proj", "up_proj"): "gate_up_proj"}
"""What inference servers join into one matrix, which then has one width, by the last part of the name."""


def exactly(name: str) -> str:
    """A regular expression that matches this name and no other."""
    return f"^{re.escape(name)}$"


def by_value(budgets: Iterable[LinearBudget]) -> dict[float, list[str]]:
    """Names of linears by what they keep, both in the order of the plan."""
    found: dict[float, list[str]] = {}
    for budget in budgets:
        found.setdefault(budget.value, []).append(budget.name)
    return found


def commonest_width(plan: Plan) -> int:
    """The bits that most linears of a plan have."""
    return Counter(round(budget.value) for budget in plan.budgets).most_common(1)[0][0]


def values_by_block(plan: Plan) -> dict[str, float] | None:
    """What each block keeps; None where linears of a block differ."""
    found: dict[str, float] = {}
    for budget in plan.budgets:
        if found.setdefault(budget.block, budget.value) != budget.value:
            return None
    return found


def check_widths(plan: Plan, widths: Collection[int], tool: str) -> None:
    """Refuse bits that a tool has no kernels or codes for.

    Raises:
        RequestError: the first such linear, with the nearest width that works.
    """
    for budget in plan.budgets:
        if budget.value not in widths:
            near = min(sorted(widths), key=lambda width: abs(width - budget.value))
            raise RequestError(
                f"{budget.name} has {budget.value:g} bits, and {tool} takes {_listed(widths)}: {near} is the "
                f"nearest; allocate again with --bit-choices among these"
            )


def check_tied(plan: Plan, tool: str) -> None:
    """Refuse different widths of linears that servers join into one.

    Raises:
        RequestError: the first two that differ.
    """
    values = {budget.name: budget.value for budget in plan.budgets}
    for name, value in values.items():
        for other in _joined_with(name):
            if other in values and values[other] != value:
                raise RequestError(
                    f"{name} has {value:g} bits and {other} {values[other]:g}, and what {tool} writes is "
                    "served with both in one matrix: allocate without --no-tie, or with --granularity block"
                )


def _joined_with(name: str) -> list[str]:
    """The other linears that the first of such a group is joined with."""
    parent, dot, last = name.rpartition(".")
    return [f"{parent}{dot}{part}" for parts in FUSED if last == parts[0] for part in parts[1:]]


def _listed(widths: Collection[int]) -> str:
    return ", ".join(map(str, sorted(widths))) + " bits"


def named_by(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a regular expression matches from their start.

    Raises:
        RequestError: it is no regular expression.
    """
    try:
        found = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:  # the last two of what is far too large
        raise RequestError(f"pattern {shown(pattern)} is no regular expression: {error}") from error
    return [name for name in names if found.match(name)]


def mean_of(values: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    """The mean over weights of those linears whose size is known."""
    known = [name for name in values if name in sizes]
    return sum(values[name] * sizes[name] for name in known) / sum(sizes[name] for name in known)
