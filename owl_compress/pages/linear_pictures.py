"""The pictures of single linears: importance, budget and error, by role and by block."""

from collections.abc import Iterator, Mapping, Sequence

from owl_compress.documents.findings import Findings
from owl_compress.documents.plan import ROUNDING
from owl_compress.documents.units import Unit
from owl_compress.pages.chart import Budgets
from owl_compress.pages.document_pictures import budgets_of, is_share
from owl_compress.pages.drawing import KEPT_WORDS
from owl_compress.pages.heat_map import HeatMap, heat_figure
from owl_compress.pages.linears_chart import Series, linears_figure
from owl_compress.pages.page import Picture, Prose
from owl_compress.pages.words import as_asked, asked_name, short_name

_WHOLE = 1e-3
"""Shares of a linear differ by so much where they are the same but for whole weights or channels."""


def roles_of(findings: Findings) -> dict[str, str]:
    """What each linear is in its block: its role, or where that is not known its name below the block."""
    roles = {
        budget.name: budget.name.removeprefix(f"{budget.block}.")
        for document in findings.budgeted
        for budget in document.budgets
    }
    if findings.profile:
        roles |= {linear.name: linear.role for linear in findings.profile.linears}
    if findings.report:
        roles |= {linear.name: linear.role for block in findings.report.blocks for linear in block.linears}
    return roles


def linear_pictures(findings: Findings, metric: str) -> list[Picture | Prose]:
    """Importance and budget in a panel for each role, and maps of blocks and roles with the errors, too."""
    roles, blocks = roles_of(findings), findings.blocks
    importance = _importance(findings, metric, roles)
    budgets = budgets_of(findings)
    differing = [one for one in budgets if _differs_in_blocks(one)]
    parts: list[Picture | Prose] = []
    if importance:
        parts.append(_importance_picture(importance, metric))
    if differing:
        parts.append(_budgets_picture(differing, roles, blocks))
    elif budgets:
        parts.append(Prose("Every linear of a block gets the budget of its block."))
    maps = [
        *([importance] if importance else []),
        *(_asked(one, roles, blocks) for one in differing),
        *_errors(findings, roles),
    ]
    shown = [one for one in maps if len(one.roles) > 1]
    return [*parts, _maps_picture(shown, short_name(findings.model))] if shown else parts


def _importance(findings: Findings, metric: str, roles: Mapping[str, str]) -> HeatMap | None:
    if findings.report is None:
        return None
    rows = [
        (block.name, roles[linear.name], linear.n_weights, linear.metrics[metric])
        for block in findings.report.blocks
        for linear in block.linears
        if metric in linear.metrics
    ]
    return HeatMap.of(f"Importance, {metric}", findings.blocks, rows) if rows else None


def _importance_picture(importance: HeatMap, metric: str) -> Picture:
    scale, unit = (100, ", % of its weights above its own mean") if is_share(metric) else (1, "")
    values = dict(zip(importance.roles, scale * importance.values, strict=True))
    what = f"{metric} of each linear{unit}, block by block"
    return Picture(
        "Importance of each linear",
        f"Bars of {metric}, a panel for each of {len(values)} roles: {importance.extremes}.",
        "One panel for each role, all on one scale.",
        lambda width: linears_figure([Series(metric, values)], importance.blocks, what, width, bars=True),
    )


def _budgets_picture(budgets: Sequence[Budgets], roles: Mapping[str, str], blocks: Sequence[str]) -> Picture:
    unit = budgets[0].unit
    scale, what = (1, "bits per weight") if unit is Unit.BITS else (100, KEPT_WORDS[unit])
    maps = [
        HeatMap.of(
            one.label, blocks, ((m.block, roles[m.name], m.n_weights, scale * m.value) for m in one.members)
        )
        for one in budgets
    ]
    series = [Series(rows.title, dict(zip(rows.roles, rows.values, strict=True))) for rows in maps]
    title = f"Budget of each linear, block by block: {what}"
    return Picture(
        "Budget of each linear",
        " ".join(f"{rows.title}: {rows.extremes}." for rows in maps),
        "One panel for each role, all on one scale; higher keeps more.",
        lambda width: linears_figure(series, blocks, title, width, bars=False),
    )


def _asked(budgets: Budgets, roles: Mapping[str, str], blocks: Sequence[str]) -> HeatMap:
    unit = budgets.unit
    rows = ((m.block, roles[m.name], m.n_weights, as_asked(unit, m.value)) for m in budgets.members)
    return HeatMap.of(f"{asked_name(unit).capitalize()} by {budgets.label}", blocks, rows, asked_name(unit))


def _errors(findings: Findings, roles: Mapping[str, str]) -> Iterator[HeatMap]:
    for name, result in findings.results.items():
        by = f" by {name}" if len(findings.results) > 1 else ""
        rows = ((one.block, roles[one.name], one.n_weights, one.relative_error) for one in result.budgets)
        yield HeatMap.of(f"Relative error{by}", findings.blocks, rows, "relative error")


def _maps_picture(maps: Sequence[HeatMap], model: str) -> Picture:
    return Picture(
        "Every linear by block and role",
        " ".join(f"{one.title}: {one.extremes}." for one in maps),
        "A column for each block, a row for each role. The further from the colour of the page, the more; "
        "where the numbers at a scale grow by factors, equal steps of colour do too.",
        lambda width: heat_figure(maps, model, width),
    )


def _differs_in_blocks(budgets: Budgets) -> bool:
    """Whether the linears of any block get different budgets."""
    ends: dict[str, tuple[float, float]] = {}
    for one in budgets.members:
        low, high = ends.get(one.block, (one.value, one.value))
        ends[one.block] = (min(low, one.value), max(high, one.value))
    slack = ROUNDING if budgets.unit is Unit.BITS else _WHOLE
    return any(high - low > slack for low, high in ends.values())
