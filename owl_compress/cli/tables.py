"""The tables that commands print."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from owl_compress.cli.sheet import Column, Sheet
from owl_compress.documents.measurements import (
    AgreementRecord,
    DamageRecord,
    LatencyRecord,
    PartLatency,
    PerplexityRecord,
    Prediction,
    Speedup,
    Verification,
)
from owl_compress.documents.plan import PREDICTED_DAMAGE, Plan, weighted_mean
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import LinearResult, Result
from owl_compress.documents.sensitivity import PartDamage, PartKind, SensitivityProfile
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.pages.words import (
    as_asked,
    asked_name,
    block_numbers,
    coverage_in_words,
    number_format,
    size_in_words,
    target_in_words,
)

_KEPT = {Unit.DENSITY: "density", Unit.WIDTH: "width"}
_ALL = "all"
_NOTICED = 5e-4
"""From here on the difference between what was asked for and what was got is worth a word."""

Pairs = list[tuple[str, str]]


def report_table(report: ImportanceReport) -> Sheet:
    """Metrics per block."""
    blocks = report.blocks
    numbers, notes = _numbers([block.name for block in blocks])
    metrics = list(blocks[0].metrics)
    columns = [numbers]
    sizes = [block.n_weights for block in blocks]
    if len(set(sizes)) == 1:
        notes.append(f"{sizes[0]:,} weights in each block")
    else:
        columns.append(Column("weights", _counts(sizes), is_optional=True))
    for name in metrics:
        values = [block.metrics[name] for block in blocks]
        columns.append(Column(name, _formatted(values), is_optional=name != metrics[0]))
    notes += coverage_in_words(report.coverage, report.n_weights)
    return Sheet(f"Importance of {report.model.id}", tuple(columns), tuple(notes))


_MOST_PARTS = 64
"""From here on parts are added up by block."""


_KINDS = {PartKind.TIED: "tied group"}
"""What a part is called where its kind is no noun."""


def sensitivity_table(profile: SensitivityProfile) -> Sheet:
    """Damage of each part at each level; of each block, added up, where there are many parts."""
    curves = {part.name: _damage_by_level(profile, part) for part in profile.parts}
    sizes = {part.name: part.n_weights for part in profile.parts}
    kinds = "+".join(dict.fromkeys(_KINDS.get(part.kind, part.kind) for part in profile.parts))
    is_by_block, notes = len(curves) > _MOST_PARTS, list[str]()
    if is_by_block:
        notes.append(f"sums over the {len(curves):,} parts, each compressed alone; the file has them singly")
        curves, sizes = _by_block(profile, curves)
    first, more = _numbers(list(curves))
    by_place = {label: place for curve in curves.values() for label, (place, _) in curve.items()}
    columns = [
        replace(first, heading="block" if is_by_block else "part"),
        Column("weights", _counts(sizes.values()), is_optional=True),
    ]
    for label in sorted(by_place, key=by_place.__getitem__):
        # A level at a time: from the lowest to the highest, damages fall by orders of magnitude.
        form = _damage_format([curve[label][1] for curve in curves.values() if label in curve])
        cells = (format(curve[label][1], form) if label in curve else "" for curve in curves.values())
        columns.append(Column(label, tuple(cells)))
    title = f"Damage ({profile.measure}) of {profile.model.id} by {profile.backend.name}, {kinds} by {kinds}"
    return Sheet(title, tuple(columns), (*more, *notes, _what_levels_are(profile)))


def _damage_format(damages: Sequence[float]) -> str:
    """The format of one column, in which only what is zero looks like it."""
    form = number_format(damages)
    is_lost = any(damage and not float(format(damage, form).replace(",", "")) for damage in damages)
    return ".2e" if is_lost else form


_Curve = dict[str, tuple[float, float]]
"""Level and damage, by the words for the level."""


def _damage_by_level(profile: SensitivityProfile, part: PartDamage) -> _Curve:
    def words(level: float) -> str:
        if profile.grid is not None:
            return profile.grid.shown(level)
        return f"{level:.3g}"

    pairs = zip(part.levels, part.damage, strict=True)
    is_share = profile.unit in _KEPT
    return {words(level): (level, damage) for level, damage in pairs if not (is_share and level == 1)}


def _by_block(
    profile: SensitivityProfile, curves: dict[str, _Curve]
) -> tuple[dict[str, _Curve], dict[str, int]]:
    """Sums over the parts of a block, at the levels that all of them have."""
    found: dict[str, _Curve] = {}
    sizes: dict[str, int] = {}
    for block in dict.fromkeys(part.block for part in profile.parts):
        parts = [part for part in profile.parts if part.block == block]
        members = [curves[part.name] for part in parts]
        common = [label for label in members[0] if all(label in curve for curve in members)]
        found[block] = {
            label: (members[0][label][0], sum(curve[label][1] for curve in members)) for label in common
        }
        sizes[block] = sum(part.n_weights for part in parts)
    return found, sizes


def _what_levels_are(profile: SensitivityProfile) -> str:
    if profile.unit is Unit.BITS:
        return "columns are bits per weight"
    return "columns are N:M, N kept of M" if profile.grid else f"columns are the {_KEPT[profile.unit]} kept"


def plan_table(plan: Plan, result: Result | None = None) -> Sheet:
    """Budget per block, with the whole below; beside it what was `result` of it, where that is known."""
    rows = plan.per_block
    numbers, notes = _numbers([row.name for row in rows], _ALL)
    sizes = [row.n_weights for row in rows]
    values = [*(row.value for row in rows), plan.achieved]
    columns = [
        numbers,
        Column("weights", _counts([*sizes, sum(sizes)])),
        Column(asked_name(plan.unit), _budgets(plan.unit, values)),
    ]
    if plan.unit in _KEPT:
        columns.append(Column(_KEPT[plan.unit], _shares(values), is_optional=True))
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
        Column("achieved", _budgets(unit, [*achieved, result.totals.achieved])),
        Column("error", _shares([*errors, whole]), is_optional=True),
    ]


def _mean(rows: Sequence[LinearResult], read: Callable[[LinearResult], float]) -> float:
    """Mean over the weights of the linears."""
    return sum(row.n_weights * read(row) for row in rows) / sum(row.n_weights for row in rows)


def result_table(result: Result) -> Sheet:
    """Totals of one compression."""
    totals, unit = result.totals, result.budgets[0].unit
    asked, achieved = as_asked(unit, totals.asked), as_asked(unit, totals.achieved)
    rows = [
        (f"{asked_name(unit)} asked", _budgets(unit, [totals.asked])[0]),
        (f"{asked_name(unit)} achieved, counted", _budgets(unit, [totals.achieved])[0]),
        ("compressed weights", f"{totals.n_weights:,}"),
        *_before_and_after("parameters", totals.n_params_before, totals.n_params_after),
        ("bits per weight, whole model", f"{totals.bits_per_weight:.3f}"),
    ]
    if totals.bytes_on_disk is not None:
        rows.append(("size on disk", size_in_words(totals.bytes_on_disk)))
    if result.evaluation:
        rows.append(("perplexity before", _perplexity(result.evaluation.dense)))
        rows.append(("perplexity after", _perplexity(result.evaluation.compressed)))
        if result.evaluation.agreement:
            rows += agreement_rows(result.evaluation.agreement)
    if result.sensitivity:
        rows.append(("damage", _damage_in_words(result.sensitivity)))
    rows += [(name, _plain(value)) for name, value in _stated(result).items()]
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


def perplexity_table(
    record: PerplexityRecord, dense: PerplexityRecord | None = None, agreement: AgreementRecord | None = None
) -> Sheet:
    """One evaluation, and what the dense model makes of the same text."""
    rows = [("perplexity", _perplexity(record))]
    if dense:
        rows.append(("of the dense model", _perplexity(dense)))
    if agreement:
        rows += agreement_rows(agreement)
    if record.bits_per_byte is not None and record.bits_per_character is not None:
        rows.append(("bits per byte", f"{record.bits_per_byte:.4f}"))
        rows.append(("bits per character", f"{record.bits_per_character:.4f}"))
    overlap = f", {record.stride:,} apart" if record.stride else ""
    rows += [
        ("windows", f"{record.windows:,} of {record.seq_len:,} tokens{overlap}"),
        ("tokens predicted", f"{record.tokens:,}"),
        ("begin-of-text token", record.bos),
        ("data type", record.dtype),
        ("parameters", f"{record.n_params:,}"),
    ]
    protocol = f", protocol {record.protocol}" if record.protocol else ""
    return Sheet.of_pairs(f"Perplexity on {record.data}{protocol}", rows)


def agreement_rows(record: AgreementRecord) -> list[tuple[str, str]]:
    """How nearly a model predicts what the dense one does."""
    return [
        ("divergence from the dense model", f"{record.kl:.4g} nats"),
        ("agrees on the likeliest token", f"{record.top1:.2%}"),
    ]


def _perplexity(record: PerplexityRecord) -> str:
    value = record.perplexity
    return f"{value:,.3f}" if value < 1e6 else f"{value:.4g}"


def latency_table(rows: Sequence[LatencyRecord]) -> Sheet:
    """What was timed: a column for each model, the one that others are compared with first."""
    first = rows[0]
    kernels = {row.kernel for row in rows}
    names = _shortest([row.name for row in rows])
    headings = [
        name if len(kernels) == 1 else f"{name}, {row.kernel}" for name, row in zip(names, rows, strict=True)
    ]
    lines: list[tuple[str, list[str]]] = [
        ("parameters", [f"{row.n_params:,}" for row in rows]),
        ("prefill, tokens per second", [f"{row.prefill_tokens_per_second:,.1f}" for row in rows]),
        ("decode, tokens per second", [f"{row.decode_tokens_per_second:,.1f}" for row in rows]),
        ("prefill, ms", _milliseconds(row.prefill_seconds for row in rows)),
        ("decode, ms per token", _milliseconds(row.decode_seconds_per_token for row in rows)),
        *_part("blocks", [row.blocks for row in rows]),
        *_part("head", [row.head for row in rows]),
        *(_speedups(rows) if any(row.speedup for row in rows) else []),
        ("weights", [size_in_words(row.weight_bytes) for row in rows]),
    ]
    if any(row.peak_device_bytes for row in rows):
        lines.append(("peak device memory", [size_in_words(row.peak_device_bytes) for row in rows]))
    lines.append(("peak host memory of the process", [size_in_words(row.peak_host_bytes) for row in rows]))
    columns = [Column("what", tuple(name for name, _ in lines), is_text=True)]
    columns += [
        Column(heading, tuple(cells[index] for _, cells in lines)) for index, heading in enumerate(headings)
    ]
    return Sheet(f"Latency on {_machine(first)}", tuple(columns), (_shape(first),))


def _machine(row: LatencyRecord) -> str:
    threads = f", {row.threads} thread{'s' * (row.threads > 1)}" if row.threads else ""
    return f"{row.device}{threads}, {row.dtype}"


def _shape(row: LatencyRecord) -> str:
    shape = row.shape
    compiled = ", decode compiled" * row.compiled
    return (
        f"median of {row.runs} runs: batch {shape.batch_size}, prompt {shape.prompt_len}, "
        f"{shape.new_tokens} new tokens{compiled}"
    )


def _shortest(names: Sequence[str]) -> list[str]:
    """The last part of each path, where these differ."""
    short = [PurePath(name).name or name for name in names]
    return short if len(set(short)) == len(set(names)) else list(names)


def _milliseconds(seconds: Iterable[float | None]) -> list[str]:
    return ["" if value is None else f"{1000 * value:,.3f}" for value in seconds]


def _part(name: str, parts: Sequence[PartLatency | None]) -> list[tuple[str, list[str]]]:
    if not any(parts):
        return []
    prefill = _milliseconds(part.prefill_seconds if part else None for part in parts)
    decode = _milliseconds(part.decode_seconds_per_token if part else None for part in parts)
    return [(f"{name}, prefill, ms", prefill), (f"{name}, decode, ms per token", decode)]


def _speedups(rows: Sequence[LatencyRecord]) -> list[tuple[str, list[str]]]:
    """How many times as fast as the first model the others are."""

    def line(name: str, read: Callable[[Speedup], float]) -> tuple[str, list[str]]:
        cells = [f"{read(row.speedup):.2f}" if row.speedup else "1" for row in rows]
        return f"{name}, times as fast", cells

    return [
        line("prefill", lambda speedup: speedup.prefill),
        line("decode", lambda speedup: speedup.decode),
        line("blocks, prefill", lambda speedup: speedup.blocks_prefill),
        line("blocks, decode", lambda speedup: speedup.blocks_decode),
    ]


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
        Column("groups", _counts(one.groups for one in found), is_optional=True),
        Column("violating", _counts(one.violating for one in found)),
        Column(
            "first (row, input)", tuple(f"{one.row}, {one.first_input}" for one in found), is_optional=True
        ),
        Column("kept", _counts(one.kept for one in found)),
        Column("allowed", _counts(one.allowed for one in found)),
    )
    return Sheet(title, columns, notes)


def _numbers(names: Sequence[str], *further: str) -> tuple[Column, list[str]]:
    """The column of the blocks, and what their short names stand for."""
    short, prefix = block_numbers(names)
    notes = [f"block {short[-1]} is {names[-1]}"] if prefix else []
    return Column("block", (*short, *further), is_text=not prefix), notes


def _formatted(values: Sequence[float]) -> tuple[str, ...]:
    form = number_format(values)
    return tuple(format(value, form) for value in values)


def _shares(values: Iterable[float]) -> tuple[str, ...]:
    return tuple(f"{value:.4f}" for value in values)


def _budgets(unit: Unit, values: Iterable[float]) -> tuple[str, ...]:
    """Values of a plan as they are asked for: sparsities to four decimals, bits to two."""
    return tuple(f"{as_asked(unit, value):.{2 if unit is Unit.BITS else 4}f}" for value in values)


def _counts(values: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"{value:,}" for value in values)


def _plain(value: Any) -> str:
    """A value of an option as people write it."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
