"""The page of one compression: what was measured and planned, what came of it, and how it was made."""

from collections.abc import Iterable

from owl_compress.documents.findings import Findings
from owl_compress.documents.tuning import TuningDocument
from owl_compress.errors import RequestError
from owl_compress.pages.damage_card import outcome_of_damage
from owl_compress.pages.document_pictures import (
    budgets_picture,
    damage_picture,
    errors_picture,
)
from owl_compress.pages.document_tables import block_table, linear_table, part_table
from owl_compress.pages.headline import key_figures, kind_of, summary_of, title_of
from owl_compress.pages.linear_pictures import linear_pictures, roles_of
from owl_compress.pages.making import made_section
from owl_compress.pages.page import Facts, Notes, Page, Part, Prose, Section, render
from owl_compress.pages.result_tables import (
    accuracy_table,
    footprint_table,
    result_facts,
    results_table,
)
from owl_compress.pages.tuning_table import tried_table
from owl_compress.pages.tuning_words import tried_in_words
from owl_compress.pages.words import short_name, windows_in_words

_METRIC = "lod@5"


def document_page(findings: Findings) -> str:
    """The HTML of the page.

    Raises:
        RequestError: budgets in several units, documents that do not fit together, or nothing of a block.
    """
    if not findings.blocks:
        raise RequestError("what tuning tried names no blocks: name the plan that came of it, too")
    _check_units(findings)
    metric = _metric(findings)
    heading = "Importance and budgets" if findings.report else "Budgets"
    return render(
        Page(
            kicker=f"owl-compress · {kind_of(findings)}",
            title=title_of(findings),
            summary=summary_of(findings, metric),
            figures=key_figures(findings),
            sections=[
                Section("blocks", heading, _there(budgets_picture(findings, metric))),
                Section("linears", "Linear by linear", linear_pictures(findings, metric)),
                Section("tried", "What was tried", _tried(findings.tuning)),
                Section("damage", "Damage", _damage(findings)),
                Section("errors", "What compression changed", _there(errors_picture(findings))),
                Section("sizes", "Quality, sizes and times", _sizes(findings)),
                Section("tables", "Tables", _tables(findings, metric)),
                made_section(findings),
            ],
        )
    )


def _metric(findings: Findings) -> str:
    """The importance to show: the one that a plan was made from, `lod@5`, or the first of the report.

    Raises:
        RequestError: the report has none.
    """
    if findings.report is None:
        return _METRIC
    known = set.intersection(*(set(block.metrics) for block in findings.report.blocks))
    if not known:
        raise RequestError("the report has no metric that all of its blocks have: measure it again")
    used = [plan.allocator.parameters.get("metric") for plan in findings.plans.values()]
    return next(str(name) for name in (*used, _METRIC, *sorted(known)) if name in known)


def _check_units(findings: Findings) -> None:
    units = {plan.unit for plan in findings.plans.values()}
    units |= {result.budgets[0].unit for result in findings.results.values()}
    units |= {findings.profile.unit} if findings.profile else set()
    if len(units) > 1:
        raise RequestError(
            f"budgets in {' and '.join(sorted(units))} do not fit on one page: name files in one unit"
        )


def _there(*parts: Part | None) -> list[Part]:
    return [part for part in parts if part is not None]


def _tried(tuning: TuningDocument | None) -> list[Part]:
    """The plans among which this one was chosen, and why."""
    if tuning is None:
        return []
    return [Notes([f"{line[0].upper()}{line[1:]}." for line in tried_in_words(tuning)]), tried_table(tuning)]


def _damage(findings: Findings) -> list[Part]:
    """Curves and parts of a profile, and how its prediction did."""
    records = {name: result.sensitivity for name, result in findings.results.items() if result.sensitivity}
    told: Iterable[tuple[str, str]] = (
        (what if len(records) == 1 else f"{name}, {what}", shown)
        for name, record in records.items()
        for what, shown in outcome_of_damage(record)
    )
    pairs = list(told)
    return _there(damage_picture(findings), Facts(pairs) if pairs else None)


def _sizes(findings: Findings) -> list[Part]:
    results = findings.results
    if not results:
        return []
    parts: list[Part] = [
        results_table(results) if len(results) > 1 else Facts(result_facts(*results.values()))
    ]
    dense = next((one.evaluation.dense for one in results.values() if one.evaluation), None)
    told = (
        f"Perplexity on {short_name(dense.data)}: {windows_in_words(dense)}; both in one process."
        if dense
        else "Quality was not measured in this run; owl-compress eval does."
    )
    tables = (make(result) for result in results.values() for make in (accuracy_table, footprint_table))
    return [*parts, Prose(told), *_there(*tables)]


def _tables(findings: Findings, metric: str) -> list[Part]:
    """Every number, to be sorted."""
    return _there(
        block_table(findings, metric) if findings.report or findings.plans or findings.results else None,
        linear_table(findings, roles_of(findings), metric),
        part_table(findings),
    )
