"""The top of a page: its title, what a reader in a hurry takes away, and the figures that stand out."""

from owl_compress.documents.findings import Findings
from owl_compress.documents.plan import Plan
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import Result
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.documents.units import Unit
from owl_compress.pages.chart import Budgets, all_asked
from owl_compress.pages.page import KeyFigure
from owl_compress.pages.words import (
    as_asked,
    asked_name,
    budget_in_words,
    number_format,
    perplexity_in_words,
    seconds_in_words,
    short_name,
    size_in_words,
    target_in_words,
)

_ALIKE = 5e-5
"""Budgets nearer to each other look the same in all that is shown of them."""


def kind_of(findings: Findings) -> str:
    """What the page is of, in a word."""
    if findings.results:
        return "result"
    if findings.plans:
        return "plan"
    return "sensitivity profile" if findings.profile else "importance report"


def title_of(findings: Findings) -> str:
    """What is compressed, and how far."""
    model = short_name(findings.model)
    if findings.budgeted:
        asked = all_asked([Budgets.of(one) for one in findings.plans.values() or findings.budgeted])
        if findings.results:
            return f"{model} at {asked}"
        return f"Budgets for {model} at {asked}" if model else f"Budgets at {asked}"
    if findings.profile:
        return f"What {findings.profile.backend.name} does to {model}, part by part"
    return f"Importance of the blocks of {model}"


def summary_of(findings: Findings, metric: str) -> str:
    """What came of it, in a few sentences with numbers; of measurements alone where nothing was planned."""
    sentences = [_of_plan(name, plan) for name, plan in findings.plans.items()]
    sentences += [_of_result(name, result, findings) for name, result in findings.results.items()]
    if not sentences and findings.profile:
        sentences.append(_of_profile(findings.profile))
    if not sentences and findings.report:
        sentences.append(_of_report(findings.report, metric))
    return " ".join(sentences)


def _of_plan(name: str, plan: Plan) -> str:
    asked = sorted(as_asked(plan.unit, block.value) for block in plan.per_block)
    if asked[-1] - asked[0] < _ALIKE:
        return f"The plan {name} gives each of {len(asked)} blocks the same: {target_in_words(plan)}."
    return (
        f"The plan {name} gives {len(asked)} blocks a {asked_name(plan.unit)} from {asked[0]:.4g} to "
        f"{asked[-1]:.4g}, on average {budget_in_words(plan.unit, plan.achieved)}."
    )


def _of_result(name: str, result: Result, findings: Findings) -> str:
    unit, totals = result.budgets[0].unit, result.totals
    several = f" the plan {name}" if len(findings.results) > 1 and name in findings.plans else " it"
    carried = f"{result.backend.name} carried{several} out" if findings.plans else result.backend.name
    got = f"{carried}: {asked_name(unit)} {budget_in_words(unit, totals.achieved)}, counted in the tensors"
    if result.evaluation is None:
        return f"{got}."
    dense, compressed = result.evaluation.dense, result.evaluation.compressed
    before, after = map(perplexity_in_words, (dense.perplexity, compressed.perplexity))
    return f"{got}; perplexity on {short_name(dense.data)} went from {before} to {after}."


def _of_profile(profile: SensitivityProfile) -> str:
    worst = max(profile.parts, key=lambda part: max(part.damage))
    return (
        f"{len(profile.parts)} parts were compressed one at a time, with everything else dense. Most damage, "
        f"{max(worst.damage):.4g} by {profile.measure}, came of {worst.name}."
    )


def _of_report(report: ImportanceReport, metric: str) -> str:
    values = {block.name: block.metrics[metric] for block in report.blocks}
    low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    form = number_format(values.values())
    return (
        f"{metric} of {len(values)} blocks, which hold {report.n_weights:,} weights in their linears, lies "
        f"between {values[low]:{form}} in {low} and {values[high]:{form}} in {high}."
    )


def key_figures(findings: Findings) -> list[KeyFigure]:
    """The numbers that stand out: of the result where there is one, else of what is known before."""
    if len(findings.results) == 1:
        return _figures_of_result(next(iter(findings.results.values())))
    if findings.results:
        return _figures_of_several(findings.results)
    if len(findings.plans) == 1:
        return _figures_of_plan(next(iter(findings.plans.values())))
    return _figures_of_measured(findings)


def _figures_of_result(result: Result) -> list[KeyFigure]:
    unit, totals = result.budgets[0].unit, result.totals
    figures = [
        KeyFigure(
            f"{asked_name(unit)}, counted", budget_in_words(unit, totals.achieved),
            f"asked {budget_in_words(unit, totals.asked)}",
        )
    ]  # fmt: skip
    if result.evaluation:
        dense, compressed = result.evaluation.dense.perplexity, result.evaluation.compressed.perplexity
        remark = f"{perplexity_in_words(dense)} before, × {compressed / dense:.3g}"
        figures.append(KeyFigure("perplexity", perplexity_in_words(compressed), remark))
    if totals.bytes_on_disk is not None:
        figures.append(KeyFigure("on disk", size_in_words(totals.bytes_on_disk), "weight files"))
    figures.append(KeyFigure("bits per weight", f"{totals.bits_per_weight:.3g}", "whole model"))
    removed = 1 - totals.n_params_after / totals.n_params_before if totals.n_params_before else 0.0
    remark = f"{100 * removed:.3g} % fewer than before" if removed else "as many as before"
    figures.append(KeyFigure("parameters", _millions(totals.n_params_after), remark))
    figures.append(KeyFigure("time", seconds_in_words(result.wall_seconds), "to compress"))
    return figures


def _figures_of_several(results: dict[str, Result]) -> list[KeyFigure]:
    """The perplexities side by side, the dense one first."""
    measured = {name: one.evaluation for name, one in results.items() if one.evaluation}
    figures = [
        KeyFigure("perplexity, dense", perplexity_in_words(one.dense.perplexity))
        for one in list(measured.values())[:1]
    ]
    figures += [
        KeyFigure(
            f"perplexity, {name}", perplexity_in_words(one.compressed.perplexity),
            f"× {one.compressed.perplexity / one.dense.perplexity:.3g}",
        )
        for name, one in measured.items()
    ]  # fmt: skip
    unit = next(iter(results.values())).budgets[0].unit
    figures += [
        KeyFigure(f"{asked_name(unit)}, {name}", budget_in_words(unit, one.totals.achieved), "counted")
        for name, one in results.items()
    ]
    return figures


def _figures_of_plan(plan: Plan) -> list[KeyFigure]:
    asked = sorted(as_asked(plan.unit, block.value) for block in plan.per_block)
    n_weights = sum(budget.n_weights for budget in plan.budgets)
    average = budget_in_words(plan.unit, plan.achieved)
    return [
        KeyFigure(asked_name(plan.unit), average, "mean over the weights"),
        KeyFigure("of the blocks", f"{asked[0]:.3g} – {asked[-1]:.3g}", "least to most"),
        KeyFigure("allocator", plan.allocator.name),
        KeyFigure("blocks", f"{len(asked)}", f"{len(plan.budgets)} linears"),
        KeyFigure("weights", _millions(n_weights), "in these linears"),
    ]


def _figures_of_measured(findings: Findings) -> list[KeyFigure]:
    blocks = findings.blocks
    if findings.profile and not findings.plans:
        profile = findings.profile
        levels = sorted({level for part in profile.parts for level in part.levels})
        text, is_bits = profile.damage_text, profile.unit is Unit.BITS
        ends = [f"{level:g}" if is_bits else f"{100 * level:.3g} %" for level in (levels[0], levels[-1])]
        return [
            KeyFigure("parts", f"{len(profile.parts)}", f"in {len(blocks)} blocks"),
            KeyFigure("levels", f"{ends[0]} – {ends[1]}", "bits per weight" if is_bits else "kept"),
            KeyFigure("damage on", f"{text.sequences} × {text.seq_len}", "tokens, held apart"),
            KeyFigure("cost", f"{profile.forward_tokens:,.0f}", "tokens through the model"),
        ]
    if findings.report is None:
        return []
    report = findings.report
    figures = [
        KeyFigure(
            "blocks", f"{len(blocks)}", f"{sum(len(block.linears) for block in report.blocks)} linears"
        ),
        KeyFigure("weights", _millions(report.n_weights), "in these linears"),
    ]
    seen = report.provenance.calibration
    if seen:
        figures.append(KeyFigure("calibration", f"{seen.sequences} × {seen.seq_len}", "tokens"))
    return figures


def _millions(count: int) -> str:
    """A count in the words that models are known by: "134.5 M", "6.74 B"."""
    for size, sign in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.4g} {sign}"
    return f"{count}"
