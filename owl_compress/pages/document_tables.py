"""The tables of one compression: each block, each linear, each result, sizes before and after."""

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
    budget_in_words,
    number_format,
    perplexity_in_words,
    seconds_in_words,
    size_in_words,
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


def result_facts(result: Result) -> list[tuple[str, str]]:
    """What was asked, what was got, and what it cost, one under the other."""
    unit, totals = result.budgets[0].unit, result.totals
    facts = [
        (f"{asked_name(unit)} asked", budget_in_words(unit, totals.asked)),
        (f"{asked_name(unit)} achieved, counted", budget_in_words(unit, totals.achieved)),
        ("compressed weights", f"{totals.n_weights:,}"),
    ]
    if result.evaluation:
        dense, compressed = result.evaluation.dense.perplexity, result.evaluation.compressed.perplexity
        facts += [
            ("perplexity before", perplexity_in_words(dense)),
            ("perplexity after", perplexity_in_words(compressed)),
        ]
        agreement = result.evaluation.agreement
        if agreement:
            facts += [
                ("KL divergence from the dense model", f"{agreement.kl:.4g} nats"),
                (
                    "same likeliest token",
                    f"{100 * agreement.top1:.2f} % of {agreement.positions:,} positions",
                ),
            ]
    if totals.bytes_on_disk is not None:
        facts.append(
            ("weight files", f"{size_in_words(totals.bytes_on_disk)} ({totals.bytes_on_disk:,} bytes)")
        )
    facts += [
        ("bits per weight, whole model", f"{totals.bits_per_weight:.4g}"),
        ("parameters before", f"{totals.n_params_before:,}"),
        ("parameters after", f"{totals.n_params_after:,}"),
        ("time to compress", seconds_in_words(result.wall_seconds)),
        ("peak host memory", size_in_words(result.peak_host_bytes)),
    ]
    if result.peak_device_bytes:
        facts.append(("peak device memory", size_in_words(result.peak_device_bytes)))
    return facts


def results_table(results: Mapping[str, Result]) -> Table:
    """The same of several, a row for each."""
    rows = list(results.values())
    unit = rows[0].budgets[0].unit
    evaluations = [one.evaluation for one in rows]
    columns = [
        Column.of_words("result", results),
        Column.of_words("backend", (one.backend.name for one in rows)),
        _of_rows(
            f"{asked_name(unit)} asked", [as_asked(unit, one.totals.asked) for one in rows], _form(unit)
        ),
        _of_rows("achieved", [as_asked(unit, one.totals.achieved) for one in rows], _form(unit)),
    ]
    if any(evaluations):
        dense = [one.dense.perplexity if one else None for one in evaluations]
        after = [one.compressed.perplexity if one else None for one in evaluations]
        columns.append(Column.told("perplexity before", dense, perplexity_in_words))
        columns.append(Column.told("perplexity after", after, perplexity_in_words))
    columns += _sizes("on disk", [one.totals.bytes_on_disk for one in rows])
    columns += [
        _of_rows("bits per weight", [one.totals.bits_per_weight for one in rows], ".3f"),
        _of_rows("parameters", [one.totals.n_params_after for one in rows], ",.0f"),
        Column.told("time", [one.wall_seconds for one in rows], seconds_in_words),
        *_sizes("host memory", [one.peak_host_bytes for one in rows]),
        *_sizes("device memory", [one.peak_device_bytes or None for one in rows]),
    ]
    return Table("Each result", columns)


def _sizes(heading: str, sizes: Sequence[int | None]) -> list[Column]:
    """A column of bytes; none where nothing is known."""
    if all(size is None for size in sizes):
        return []
    return [Column.told(heading, sizes, lambda size: size_in_words(int(size)))]


def footprint_table(result: Result) -> Table | None:
    """What is smaller than before; None where that was not counted."""
    if result.footprint is None:
        return None
    before, after = result.footprint.before, result.footprint.after
    rows = [
        ("parameters", before.n_params, after.n_params),
        ("key-value cache, bytes per token", before.kv_cache_bytes_per_token, after.kv_cache_bytes_per_token),
        ("operations per token, blocks", before.flops_per_token_blocks, after.flops_per_token_blocks),
        (
            "operations per token, attention",
            before.flops_per_token_attention,
            after.flops_per_token_attention,
        ),
        ("operations per token, output layer", before.flops_per_token_head, after.flops_per_token_head),
    ]
    shares = [1 - new / old if old and new is not None else None for _, old, new in rows]
    return Table(
        f"What is smaller; attention is over {before.context_len:,} tokens",
        [
            Column.of_words("", (name for name, *_ in rows)),
            Column.of_numbers("before", (old for _, old, _ in rows), ",.0f"),
            Column.of_numbers("after", (new for *_, new in rows), ",.0f"),
            Column.of_numbers("removed", shares, ".4f"),
        ],
    )


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
        columns.append(_of_rows(shown, [curve.get(level) for curve in curves]))
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
    return _of_rows(heading, [values.get(name) for name in names])


def _budgets(heading: str, values: Values, names: Sequence[str], unit: Unit) -> Column:
    return _of_rows(heading, [values.get(name) for name in names], _form(unit))


def _of_rows(heading: str, values: Sequence[float | None], form: str | None = None) -> Column:
    known = [value for value in values if value is not None]
    return Column.of_numbers(heading, values, form or number_format(known))


def _form(unit: Unit) -> str:
    return ".2f" if unit is Unit.BITS else ".4f"
