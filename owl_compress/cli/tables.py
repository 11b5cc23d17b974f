"""The tables of what is measured, planned, predicted, done and verified."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from owl_compress.cli.cells import KEPT, as_asked_for, block_column, counts, formatted, plain_value, shares
from owl_compress.cli.evaluation_tables import agreement_rows, perplexity_shown
from owl_compress.cli.sheet import Column, Sheet
from owl_compress.documents.measurements import (
    DamageRecord,
    Prediction,
    StageNeeds,
    Verification,
)
from owl_compress.documents.plan import PREDICTED_DAMAGE, Plan, weighted_mean
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import LinearResult, Result
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.pages.words import (
    as_asked,
    asked_name,
    coverage_in_words,
    number_format,
    seconds_in_words,
    size_in_words,
    target_in_words,
)

_ALL = "all"
_NOTICED = 5e-4
"""From here on the difference between what was asked for and what was got is worth a word."""

Pairs = list[tuple[str, str]]


def report_table(report: ImportanceReport) -> Sheet:
    """Metrics per block."""
    blocks = report.blocks
    numbers, notes = block_column([block.name for block in blocks])
    metrics = list(blocks[0].metrics)
    columns = [numbers]
    sizes = [block.n_weights for block in blocks]
    if len(set(sizes)) == 1:
        notes.append(f"{sizes[0]:,} weights in each block")
    else:
        columns.append(Column("weights", counts(sizes), is_optional=True))
    for name in metrics:
        values = [block.metrics[name] for block in blocks]
        columns.append(Column(name, formatted(values), is_optional=name != metrics[0]))
    notes += coverage_in_words(report.coverage, report.n_weights)
    return Sheet(f"Importance of {report.model.id}", tuple(columns), tuple(notes))


def plan_table(plan: Plan, result: Result | None = None) -> Sheet:
    """Budget per block, with the whole below; beside it what was `result` of it, where that is known."""
    rows = plan.per_block
    numbers, notes = block_column([row.name for row in rows], _ALL)
    sizes = [row.n_weights for row in rows]
    values = [*(row.value for row in rows), plan.achieved]
    columns = [
        numbers,
        Column("weights", counts([*sizes, sum(sizes)])),
        Column(asked_name(plan.unit), as_asked_for(plan.unit, values)),
    ]
    if plan.unit in KEPT:
        columns.append(Column(KEPT[plan.unit], shares(values), is_optional=True))
    if isinstance(plan.grid, KeptOfGrid):
        kept = tuple(f"{value * plan.grid.kept_of:.4g}" for value in values)
        columns.append(Column(f"N of {plan.grid.kept_of}", kept, is_optional=True))
    if result:
        columns += _columns_of_result(result, [row.name for row in rows])
    else:  # the result says the same
        notes += coverage_in_words(plan.coverage, sum(sizes))
        notes += _predicted_damage(plan)
    notes += _predicted_time(plan)
    return Sheet(_plan_title(plan), tuple(columns), tuple(notes))


def _plan_title(plan: Plan) -> str:
    drift = plan.target - plan.asked
    off = f", a drift of {drift:+g} off {plan.asked:g}" if drift else ""
    return f"Plan by {plan.allocator.name}: {target_in_words(plan)} on average{off}"


def _predicted_damage(plan: Plan) -> list[str]:
    """What a plan from a sensitivity profile says of its damage."""
    told = plan.allocator.parameters
    damage, n_unknown = told.get(PREDICTED_DAMAGE), told.get("n_parts_not_predicted")
    if not isinstance(damage, int | float):
        return []
    without = f", without {n_unknown} parts at levels that were not measured" if n_unknown else ""
    return [f"predicted damage ({told.get('measure')}, the sum over all parts): {damage:.4g}{without}"]


def _predicted_time(plan: Plan) -> list[str]:
    """What a plan within a speedup or a latency says of its time, which no result measures."""
    told = plan.allocator.parameters
    seconds, speedup = told.get("predicted_seconds"), told.get("predicted_speedup")
    if not isinstance(seconds, int | float) or not isinstance(speedup, int | float):
        return []
    return [
        f"{told.get('phase')} predicted by the cost table: {1000 * seconds:,.4g} ms, {speedup:.3g} times as "
        "fast as dense"
    ]


def _columns_of_result(result: Result, blocks: Sequence[str]) -> list[Column]:
    """What each block got, and its error."""
    unit = result.budgets[0].unit
    rows = [[one for one in result.budgets if one.block == block] for block in blocks]
    achieved = [_mean(members, lambda one: one.achieved) for members in rows]
    errors = [_mean(members, lambda one: one.relative_error) for members in rows]
    whole = _mean(result.budgets, lambda one: one.relative_error)
    return [
        Column("achieved", as_asked_for(unit, [*achieved, result.totals.achieved])),
        Column("error", shares([*errors, whole]), is_optional=True),
    ]


def _mean(rows: Sequence[LinearResult], read: Callable[[LinearResult], float]) -> float:
    """Mean over the weights of the linears."""
    return sum(row.n_weights * read(row) for row in rows) / sum(row.n_weights for row in rows)


def result_table(result: Result) -> Sheet:
    """Totals of one compression."""
    totals, unit = result.totals, result.budgets[0].unit
    asked, achieved = as_asked(unit, totals.asked), as_asked(unit, totals.achieved)
    rows = [
        (f"{asked_name(unit)} asked", as_asked_for(unit, [totals.asked])[0]),
        (f"{asked_name(unit)} achieved, counted", as_asked_for(unit, [totals.achieved])[0]),
        ("compressed weights", f"{totals.n_weights:,}"),
        *_before_and_after("parameters", totals.n_params_before, totals.n_params_after),
        ("bits per weight, whole model", f"{totals.bits_per_weight:.3f}"),
    ]
    if totals.bytes_on_disk is not None:
        rows.append(("size on disk", size_in_words(totals.bytes_on_disk)))
    if result.evaluation:
        rows.append(("perplexity before", perplexity_shown(result.evaluation.dense)))
        rows.append(("perplexity after", perplexity_shown(result.evaluation.compressed)))
        if result.evaluation.agreement:
            rows += agreement_rows(result.evaluation.agreement)
    if result.sensitivity:
        rows.append(("damage", _damage_in_words(result.sensitivity)))
        rows += _trial(result.sensitivity)
    rows += [(name, plain_value(value)) for name, value in _stated(result).items()]
    if result.fallbacks:
        rows.append(("fallbacks", str(sum(fallback.count for fallback in result.fallbacks))))
    rows.append(("seconds", f"{result.wall_seconds:.1f}"))
    rows.append(("peak host memory", size_in_words(result.peak_host_bytes)))
    if result.peak_device_bytes:
        rows.append(("peak device memory", size_in_words(result.peak_device_bytes)))
    notes = _rounding_note(unit, asked, achieved, result.backend.parameters.get("round_to"))
    notes += coverage_in_words(result.coverage, totals.n_weights)
    notes = [*notes, *result.notes]
    return Sheet.of_pairs(f"{result.model.id}, compressed by {result.backend.name}", rows, notes)


def _damage_in_words(record: DamageRecord) -> str:
    """What was predicted and what it came to, in nats where it is of the model's output."""
    if record.predicted is None:
        return f"{record.damage:.4g} nats"
    of_parts = f"the parts alone sum to {record.predicted:.4g}"
    return f"{record.damage:.4g} nats, {of_parts}" + ("" if record.ratio else f" by {record.measure}")


def _trial(record: DamageRecord) -> list[tuple[str, str]]:
    """How the plan did beside equal shares, where it was tried; a note says so where it was not taken."""
    if record.trial_damage is None or record.uniform_damage is None:
        return []
    form = number_format([record.trial_damage, record.uniform_damage])
    plan, uniform = (format(value, form) for value in (record.trial_damage, record.uniform_damage))
    return [("tried before, on text held apart", f"{plan} nats, equal shares {uniform}")]


def _stated(result: Result) -> dict[str, Any]:
    """The options of the backend, as users give them."""
    from owl_compress.pipeline.methods import BACKENDS

    return BACKENDS.as_given(result.backend.name, result.backend.parameters)


def _before_and_after(what: str, before: int, after: int) -> Pairs:
    if before == after:
        return [(what, f"{before:,}")]
    return [(f"{what} before", f"{before:,}"), (f"{what} after", f"{after:,}")]


def _rounding_note(unit: Unit, asked: float, achieved: float, step: object) -> list[str]:
    """Why a narrowed model is not as narrow as asked."""
    if unit is not Unit.WIDTH or abs(asked - achieved) < _NOTICED:
        return []
    multiple = f", channels in multiples of {step} (--round-to)" if step and step != 1 else ""
    return [f"asked {asked:.4f}, got {achieved:.4f}: heads go whole{multiple}"]


def prediction_table(prediction: Prediction, plan: Plan) -> Sheet:
    """What a compression will need and leave."""
    rows = [("checkpoint", size_in_words(prediction.checkpoint_bytes))]
    notes: list[str] = []
    if plan.unit is not Unit.BITS:  # quantization keeps every weight
        total = sum(budget.n_weights for budget in plan.budgets)
        rows.append(("weights kept in the linears", f"{prediction.n_weights_kept:,} of {total:,}"))
        asked = as_asked(plan.unit, weighted_mean(plan.budgets))
        notes = _rounding_note(plan.unit, asked, 1 - prediction.n_weights_kept / total, None)
    rows.append(("one block at work on the device", size_in_words(prediction.working_bytes)))
    if prediction.activation_bytes:
        rows.append(("activations between blocks", size_in_words(prediction.activation_bytes)))
    return Sheet.of_pairs("Predicted", rows, notes)


def needs_table(stages: Sequence[StageNeeds]) -> Sheet:
    """What each stage takes at its peak."""

    def sizes(heading: str, found: Iterable[int]) -> Column:
        return Column(heading, tuple(size_in_words(one) if one else "-" for one in found))

    columns = (
        Column("stage", tuple(one.stage for one in stages), is_text=True),
        sizes("host memory", (one.host_bytes for one in stages)),
        sizes("device memory", (one.device_bytes for one in stages)),
        sizes("disk", (one.disk_bytes for one in stages)),
    )
    if all(one.seconds is None for one in stages):
        return Sheet("Estimated peaks, beside the process itself", columns)
    times = tuple("-" if one.seconds is None else seconds_in_words(one.seconds) for one in stages)
    note = "time: forward passes and reading, roughly, by one block on one batch; the backend's comes on top"
    return Sheet(
        "Estimated peaks, beside the process itself, and time", (*columns, Column("time", times)), (note,)
    )


def verification_table(verification: Verification) -> Sheet:
    """The linears that keep more than they may, or a line that says there are none."""
    title = (
        f"{verification.linears} linears in {verification.groups:,} groups, against {verification.pattern}"
    )
    if verification.ok:
        counted = (f"ok: {verification.summary}",) if verification.summary else ()
        return Sheet(title, (), (*counted, "every group keeps no more than it may"))
    found = verification.violations
    notes = (*(one.words for one in found if one.what), verification.summary)
    columns = (
        Column("linear", tuple(one.linear for one in found), is_text=True),
        Column("groups", counts(one.groups for one in found), is_optional=True),
        Column("violating", counts(one.violating for one in found)),
        Column(
            "first (row, input)", tuple(f"{one.row}, {one.first_input}" for one in found), is_optional=True
        ),
        Column("kept", counts(one.kept for one in found)),
        Column("allowed", counts(one.allowed for one in found)),
    )
    return Sheet(title, columns, notes)
