"""The pictures of the blocks of one compression, each with words for whoever does not see it."""

from collections.abc import Sequence

import numpy as np

from owl_compress.documents.findings import Findings
from owl_compress.documents.means import block_means
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.documents.units import Unit
from owl_compress.pages.chart import Budgets, budget_figure
from owl_compress.pages.curves import MEASURES_IN_WORDS
from owl_compress.pages.damage_chart import damage_figure
from owl_compress.pages.drawing import KEPT_WORDS, Array
from owl_compress.pages.error_chart import Errors, errors_figure
from owl_compress.pages.page import Picture
from owl_compress.pages.words import short_name


def is_share(metric: str) -> bool:
    """Whether a metric is a share of the weights, shown in percent."""
    return metric.startswith("lod@")


def budgets_of(findings: Findings) -> list[Budgets]:
    """What each plan asks for; what was counted, where there is no plan."""
    if findings.plans:
        return [Budgets.of(plan).called(name) for name, plan in findings.plans.items()]
    return [Budgets.of(result).called(f"{name}, counted") for name, result in findings.results.items()]


def budgets_picture(findings: Findings, metric: str) -> Picture | None:
    """Importance of every block above what it keeps (Figure 1 of the OWL paper, arXiv 2310.05175)."""
    budgets, report = budgets_of(findings), findings.report
    if report is None and not budgets:
        return None
    of_report = [_importance_in_words(report, metric)] if report else []
    of_budgets = [_budget_in_words(one) for one in budgets]
    bars = (
        "how many of a block's weights score far above its mean (the layerwise outlier distribution)"
        if is_share(metric)
        else f"{metric} of each block"
    )
    captions = [f"Bars: {bars}."] if report else []
    if budgets:
        captions.append(
            f"Steps: {KEPT_WORDS[budgets[0].unit]}, so that higher keeps more; dashed: the target."
        )
    shown = " and ".join([*(["Importance"] if report else []), *(["budget"] if budgets else [])])
    return Picture(
        f"{shown.capitalize()} of each block",
        " ".join([*of_report, *of_budgets]),
        " ".join(captions),
        lambda width: budget_figure(report, budgets, metric, width),
    )


def _importance_in_words(report: ImportanceReport, metric: str) -> str:
    scale, unit = (100, " %") if is_share(metric) else (1, "")
    values = [scale * block.metrics[metric] for block in report.blocks]
    names = [block.name for block in report.blocks]
    return f"Bars: {metric} of {len(values)} blocks, {_ends(values, names, unit)}."


def _budget_in_words(budgets: Budgets) -> str:
    scale, unit = (1, " bits") if budgets.unit is Unit.BITS else (100, " %")
    means = block_means(budgets.members, lambda one: one.value)
    values = [scale * value for value in means.values()]
    return f"{budgets.label} at {budgets.asked} keeps {_ends(values, list(means), unit)}."


def errors_picture(findings: Findings) -> Picture | None:
    """Relative error of every block, of every result."""
    if not findings.results:
        return None
    blocks, model = findings.blocks, short_name(findings.model)
    errors = [Errors.of(name, result.budgets, blocks) for name, result in findings.results.items()]
    measures = dict.fromkeys(result.error_measure for result in findings.results.values())
    return Picture(
        "Relative error of each block",
        " ".join(f"{one.label}: {_ends(one.means, blocks, '')}." for one in errors),
        f"Error: {'; '.join(measures)}. A mark is the mean over the weights of a block, a line reaches from "
        "the least to the largest of its linears.",
        lambda width: errors_figure(errors, blocks, model, width),
    )


def damage_picture(findings: Findings) -> Picture | None:
    """Damage curves of a profile, with the levels that plans choose."""
    profile = findings.profile
    if profile is None:
        return None
    budgets = [Budgets.of(plan).called(name) for name, plan in findings.plans.items()]
    levels = ", and the level that each part gets" if budgets else ""
    return Picture(
        "Damage of each part at each level",
        _damage_in_words(profile),
        f"Damage: {MEASURES_IN_WORDS[profile.measure]}. Above, a line for each part, coloured by the depth "
        f"of its block; below, where in the model it is{levels}.",
        lambda width: damage_figure(profile, budgets, width),
    )


def _damage_in_words(profile: SensitivityProfile) -> str:
    worst = max(profile.parts, key=lambda part: max(part.damage))
    least = min(profile.parts, key=lambda part: max(part.damage))
    return (
        f"Curves of damage by {profile.backend.name} for {len(profile.parts)} parts. The largest damage is "
        f"{max(worst.damage):.4g}, of {worst.name}; least at its worst is {least.name} with "
        f"{max(least.damage):.4g}."
    )


def _ends(values: Sequence[float] | Array, blocks: Sequence[str], unit: str) -> str:
    """From the least to the largest of some blocks, in words."""
    row = np.asarray(values, float)
    low, high = int(np.nanargmin(row)), int(np.nanargmax(row))
    if row[low] == row[high]:
        return f"{row[low]:.4g}{unit} in every block"
    return f"from {row[low]:.4g}{unit} in {blocks[low]} to {row[high]:.4g}{unit} in {blocks[high]}"
