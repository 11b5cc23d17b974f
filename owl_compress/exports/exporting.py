"""From a plan to the file of another tool, which is read back before anybody gets it."""

from owl_compress.documents.plan import ROUNDING, Plan
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.exports.contract import Exported, Exporter, Foreign
from owl_compress.exports.names import mean_of
from owl_compress.exports.tools import EXPORTERS


def export(plan: Plan, tool: Exporter) -> Exported:
    """The plan in the words of a tool.

    What was written is read back: no linear may be lost, and together they may keep no more than in the plan.

    Raises:
        RequestError: the tool knows no budgets in this unit, or refuses a value, see `Exporter.write`.
        RuntimeError: what was written says something else than the plan, which is a defect.
    """
    if plan.unit not in tool.units:
        others = [name for name, one in EXPORTERS.loadable() if plan.unit in one.units]
        raise RequestError(
            f"{tool.name} knows no budgets in {plan.unit}, only in {' and '.join(tool.units)}: "
            f"{', '.join(others)} take these"
        )
    written = tool.write(plan)
    sizes = {budget.name: budget.n_weights for budget in plan.budgets}
    found = tool.read(written.text, sizes | dict.fromkeys(plan.skipped, 1))
    _check(plan, found, tool.name)
    kept = found.values
    less = sum(kept.get(budget.name, 1) < budget.value - ROUNDING for budget in plan.budgets)
    notes = (f"{less} linears get less than in the plan",) if less else ()
    return Exported(written.text, (*written.notes, *notes))


def _check(plan: Plan, found: Foreign, tool: str) -> None:
    sizes = {budget.name: budget.n_weights for budget in plan.budgets}
    whole = {budget.name: 1.0 for budget in plan.budgets if budget.value == 1 and plan.unit is not Unit.BITS}
    values = {**whole, **found.values}  # what keeps everything, need not be told
    lost = next((name for name in sizes if name not in values), None)
    if lost is not None or not values.keys() <= sizes.keys() | set(plan.skipped):
        raise RuntimeError(f"the file for {tool} lacks {lost}, or names others than the plan")
    mean = mean_of(values, sizes)
    if mean > plan.achieved + ROUNDING * max(1.0, plan.achieved):
        raise RuntimeError(f"the file for {tool} keeps {mean} on average, the plan {plan.achieved}")
