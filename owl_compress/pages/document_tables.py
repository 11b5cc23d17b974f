"""The tables of one compression: each block, each linear, each part of a profile."""

from collections.abc import Mapping, Sequence

from owl_compress.documents.findings import Findings
from owl_compress.documents.means import block_means
from owl_compress.documents.result import Result
from owl_compress.documents.units import Unit
from owl_compress.pages.page import Column, Table
from owl_compress.pages.words import (
    as_asked,
    asked_name,
    block_numbers,
    budget_format,
)

Values = Mapping[str, float]
"""A number by the name of what it is of."""


def block_table(findings: Findings, metric: str) -> Table:
    """A row for each block: importance, budgets, what it got and its error, and what else was measured."""
    blocks = findings.blocks
    numbers, prefix = block_numbers(blocks)
    columns = [_numbered("block", numbers) if prefix else Column.of_words("block", blocks)]
    columns += _metrics(findings, blocks, [metric])
    for name, plan in findings.plans.items():
        asked = {one.name: as_asked(plan.unit, one.value) for one in plan.per_block}
        columns.append(
            _budgets(_headed(asked_name(plan.unit), name, findings.plans), asked, blocks, plan.unit)
        )
    for name, result in findings.results.items():
        unit = result.budgets[0].unit
        kept = block_means(result.budgets, lambda one: one.achieved)
        achieved = {block: as_asked(unit, value) for block, value in kept.items()}
        error = block_means(result.budgets, lambda one: one.relative_error)
        columns.append(_budgets(_headed("achieved", name, findings.results), achieved, blocks, unit))
        columns.append(_numbers(_headed("error", name, findings.results), error, blocks))
    columns += _metrics(findings, blocks, [one for one in _known_metrics(findings) if one != metric])
    columns.append(_counts("weights", _block_sizes(findings), blocks))
    note = f"; block {numbers[-1]} is {blocks[-1]}" if prefix else ""
    return Table(f"Each block{note}", columns)


def _known_metrics(findings: Findings) -> list[str]:
    return list(findings.report.blocks[0].metrics) if findings.report else []


def _metrics(findings: Findings, blocks: Sequence[str], names: Sequence[str]) -> list[Column]:
    if findings.report is None:
        return []
    rows = {
        name: {one.name: one.metrics[name] for one in findings.report.blocks if name in one.metrics}
        for name in names
    }
    return [_numbers(name, values, blocks) for name, values in rows.items()]


def _block_sizes(findings: Findings) -> dict[str, int]:
    """Weights in the linears of each block, as far as budgets or the report name them."""
    if findings.report:
        return {one.name: one.n_weights for one in findings.report.blocks}
    sizes = dict[str, int]()
    for one in findings.budgeted[0].budgets if findings.budgeted else ():
        sizes[one.block] = sizes.get(one.block, 0) + one.n_weights
    return sizes


def linear_table(findings: Findings, roles: Mapping[str, str], metric: str) -> Table | None:
    """A row for each linear; None where nothing is known of single ones."""
    names, blocks = _linears(findings)
    if not names:
        return None
    columns = [Column.of_words("linear", names), Column.of_words("role", (roles[name] for name in names))]
    columns.append(_counts("weights", blocks, names))
    if findings.report:
        known = {
            one.name: one.metrics[metric]
            for block in findings.report.blocks
            for one in block.linears
            if metric in one.metrics
        }
        columns += [_numbers(metric, known, names)] if known else []
    for name, plan in findings.plans.items():
        asked = {one.name: as_asked(plan.unit, one.value) for one in plan.budgets}
        columns.append(
            _budgets(_headed(asked_name(plan.unit), name, findings.plans), asked, names, plan.unit)
        )
    for name, result in findings.results.items():
        columns += _of_result(name, result, findings, names)
    return Table("Each linear", columns)


def _of_result(name: str, result: Result, findings: Findings, names: Sequence[str]) -> list[Column]:
    unit, several = result.budgets[0].unit, findings.results
    achieved = {one.name: as_asked(unit, one.achieved) for one in result.budgets}
    errors = {one.name: one.relative_error for one in result.budgets}
    seconds = {one.name: one.seconds for one in result.budgets}
    return [
        _budgets(_headed("achieved", name, several), achieved, names, unit),
        _numbers(_headed("error", name, several), errors, names),
        _numbers(_headed("seconds", name, several), seconds, names),
    ]


def part_table(findings: Findings) -> Table | None:
    """Damage of each part of a profile at each level; None without a profile."""
    profile = findings.profile
    if profile is None:
        return None
    levels = sorted({round(level, 9) for part in profile.parts for level in part.levels})
    levels = [level for level in levels if profile.unit is Unit.BITS or level < 1]
    curves = [
        {round(level, 9): damage for level, damage in zip(part.levels, part.damage, strict=True)}
        for part in profile.parts
    ]
    columns = [
        Column.of_words("part", (part.name for part in profile.parts)),
        Column.of_numbers("weights", (part.n_weights for part in profile.parts), ",.0f"),
    ]
    for level in levels:
        shown = profile.grid.shown(level) if profile.grid else f"{level:.3g}"
        columns.append(Column.of_numbers(shown, [curve.get(level) for curve in curves]))
    kept = "bits per weight" if profile.unit is Unit.BITS else f"the {profile.unit} kept"
    return Table(f"Damage of each part; columns are {'N:M' if profile.grid else kept}", columns)


def _linears(findings: Findings) -> tuple[list[str], dict[str, int]]:
    """Names of all linears in their order, and their sizes."""
    sizes: dict[str, int] = {}
    if findings.report:
        sizes |= {one.name: one.n_weights for block in findings.report.blocks for one in block.linears}
    for document in findings.budgeted:
        sizes |= {one.name: one.n_weights for one in document.budgets if one.name not in sizes}
    return list(sizes), sizes


def _headed(what: str, name: str, among: Mapping[str, object]) -> str:
    return what if len(among) == 1 else f"{what}, {name}"


def _numbered(heading: str, numbers: Sequence[str]) -> Column:
    return Column.told(heading, [float(number) for number in numbers], lambda number: f"{number:.0f}")


def _counts(heading: str, sizes: Mapping[str, int], names: Sequence[str]) -> Column:
    return Column.of_numbers(heading, (sizes.get(name) for name in names), ",.0f")


def _numbers(heading: str, values: Values, names: Sequence[str]) -> Column:
    return Column.of_numbers(heading, [values.get(name) for name in names])


def _budgets(heading: str, values: Values, names: Sequence[str], unit: Unit) -> Column:
    return Column.of_numbers(heading, [values.get(name) for name in names], budget_format(unit))
