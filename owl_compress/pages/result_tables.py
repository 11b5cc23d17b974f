"""The tables of results: what was asked and got, quality, sizes before and after, and what it cost."""

from collections.abc import Mapping, Sequence

from owl_compress.documents.measurements import Evaluation
from owl_compress.documents.result import Result
from owl_compress.pages.page import Column, Table
from owl_compress.pages.words import (
    as_asked,
    asked_name,
    budget_format,
    budget_in_words,
    perplexity_in_words,
    seconds_in_words,
    size_in_words,
)


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
        facts += _bits_per_byte(result.evaluation)
        agreement = result.evaluation.agreement
        if agreement:
            facts += [
                ("KL divergence from the dense model", f"{agreement.kl:.4g} nats"),
                (
                    "same likeliest token",
                    f"{100 * agreement.top1:.2f} % of {agreement.positions:,} positions",
                ),
            ]
    for one in result.recoveries:
        before, after = (perplexity_in_words(record.perplexity) for record in (one.before, one.after))
        facts.append(
            (f"perplexity by recovery ({one.method}, {one.tokens:,} tokens)", f"{before} to {after}")
        )
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


def _bits_per_byte(evaluation: Evaluation) -> list[tuple[str, str]]:
    """What compares across tokenizers, where it is known."""
    before, after = evaluation.dense.bits_per_byte, evaluation.compressed.bits_per_byte
    if before is None or after is None:
        return []
    return [("bits per byte before", f"{before:.4f}"), ("bits per byte after", f"{after:.4f}")]


def results_table(results: Mapping[str, Result]) -> Table:
    """The same of several, a row for each."""
    rows = list(results.values())
    unit = rows[0].budgets[0].unit
    form = budget_format(unit)
    asked, achieved = (
        [as_asked(unit, value) for value in values]
        for values in ([one.totals.asked for one in rows], [one.totals.achieved for one in rows])
    )
    evaluations = [one.evaluation for one in rows]
    columns = [
        Column.of_words("result", results),
        Column.of_words("backend", (one.backend.name for one in rows)),
        Column.of_numbers(f"{asked_name(unit)} asked", asked, form),
        Column.of_numbers("achieved", achieved, form),
    ]
    if any(evaluations):
        dense = [one.dense.perplexity if one else None for one in evaluations]
        after = [one.compressed.perplexity if one else None for one in evaluations]
        columns.append(Column.told("perplexity before", dense, perplexity_in_words))
        columns.append(Column.told("perplexity after", after, perplexity_in_words))
    columns += _sizes("on disk", [one.totals.bytes_on_disk for one in rows])
    columns += [
        Column.of_numbers("bits per weight", [one.totals.bits_per_weight for one in rows], ".3f"),
        Column.of_numbers("parameters", [one.totals.n_params_after for one in rows], ",.0f"),
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


def accuracy_table(result: Result) -> Table | None:
    """Accuracy on each task before and after, with its standard error; None where none was asked for."""
    if result.tasks is None:
        return None
    dense, after = result.tasks.dense, result.tasks.compressed
    names = [name for name in dense if name in after]
    change = [after[name].value - dense[name].value for name in names]
    return Table(
        "Accuracy on tasks; se is the standard error over the questions",
        [
            Column.of_words("task", names),
            Column.of_words("metric", (after[name].metric for name in names)),
            Column.of_numbers("questions", (after[name].samples for name in names), ",d"),
            Column.of_numbers("before", (dense[name].value for name in names), ".4f"),
            Column.of_numbers("se before", (dense[name].stderr for name in names), ".4f"),
            Column.of_numbers("after", (after[name].value for name in names), ".4f"),
            Column.of_numbers("se after", (after[name].stderr for name in names), ".4f"),
            Column.of_numbers("change", change, "+.4f"),
            Column.of_numbers("chance", (after[name].chance for name in names), ".4f"),
        ],
    )


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
