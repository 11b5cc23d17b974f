"""The tables that commands print."""

from collections.abc import Callable, Iterable, Sequence

from rich.table import Table

from owl_compress.documents.measurements import (
    LatencyRecord,
    PartLatency,
    PerplexityRecord,
    Prediction,
    Speedup,
    Verification,
)
from owl_compress.documents.plan import Plan
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import Result
from owl_compress.documents.units import KeptOfGrid, Unit

_UNIT_HEADINGS = {
    Unit.DENSITY: ("density (kept)", "sparsity (removed)"),
    Unit.WIDTH: ("width (kept)", "removed"),
    Unit.BITS: ("bits per weight", ""),
}


def new_table(title: str, *headings: str) -> Table:
    """A table whose first column is text and whose others are numbers."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left", overflow="fold")
    return table


def report_table(report: ImportanceReport) -> Table:
    """Metrics per block."""
    metrics = list(report.blocks[0].metrics)
    table = new_table(f"Importance of {report.model.id}", "block", "weights", *metrics)
    for block in report.blocks:
        table.add_row(block.name, f"{block.n_weights:,}", *(f"{block.metrics[name]:.5g}" for name in metrics))
    return table


def plan_table(plan: Plan) -> Table:
    """Budget per block, with the total below."""
    kept, removed = _UNIT_HEADINGS[plan.unit]
    headings = ["block", "weights", kept, *([removed] if removed else [])]
    if isinstance(plan.grid, KeptOfGrid):
        headings.append(f"N kept of {plan.grid.kept_of}")
    asked = (
        "" if plan.asked == plan.target else f", a drift of {plan.target - plan.asked:+g} off {plan.asked:g}"
    )
    title = f"Plan by {plan.allocator.name}: {plan.unit} {plan.target:g} on average{asked}"
    table = new_table(title, *headings)
    total = sum(budget.n_weights for budget in plan.budgets)
    rows = [(row.name, row.n_weights, row.value) for row in plan.per_block]
    for name, n_weights, value in [*rows, ("all blocks", total, plan.achieved)]:
        cells = [f"{value:.4f}"]
        if removed:
            cells.append(f"{1 - value:.4f}")
        if isinstance(plan.grid, KeptOfGrid):
            cells.append(f"{value * plan.grid.kept_of:.4g}")
        table.add_row(name, f"{n_weights:,}", *cells)
    return table


def result_table(result: Result) -> Table:
    """Totals of one compression."""
    totals = result.totals
    table = new_table(f"{result.model.id}, compressed by {result.backend.name}", "what", "value")
    for name, value in result.backend.parameters.items():
        if value is not None:
            table.add_row(name.replace("_", " "), str(value))
    table.add_row("asked (mean over compressed weights)", f"{totals.asked:.6f}")
    table.add_row("achieved, counted", f"{totals.achieved:.6f}")
    table.add_row("compressed weights", f"{totals.n_weights:,}")
    table.add_row("parameters before / after", f"{totals.n_params_before:,} / {totals.n_params_after:,}")
    table.add_row("bits per weight, whole model", f"{totals.bits_per_weight:.3f}")
    if totals.bytes_on_disk is not None:
        table.add_row("bytes on disk", f"{totals.bytes_on_disk:,}")
    if result.evaluation:
        table.add_row("perplexity before", f"{result.evaluation.dense.perplexity:.4f}")
        table.add_row("perplexity after", f"{result.evaluation.compressed.perplexity:.4f}")
    table.add_row("fallbacks", str(sum(fallback.count for fallback in result.fallbacks)))
    table.add_row("seconds", f"{result.wall_seconds:.1f}")
    table.add_row("peak host memory, GiB", f"{result.peak_host_bytes / 2**30:.2f}")
    if result.peak_device_bytes:
        table.add_row("peak device memory, GiB", f"{result.peak_device_bytes / 2**30:.2f}")
    return table


def perplexity_table(record: PerplexityRecord) -> Table:
    """One evaluation."""
    table = new_table(f"Perplexity on {record.data}", "what", "value")
    for name, value in record.model_dump().items():
        if name != "data":
            table.add_row(name.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else f"{value}")
    return table


def latency_table(rows: Sequence[LatencyRecord]) -> Table:
    """What was timed: a column for each model, the one that others are compared with first."""
    first = rows[0]
    shape = first.shape
    threads = f" with {first.threads} threads" if first.threads else ""
    title = (
        f"Median of {first.runs} runs on {first.device}{threads} in {first.dtype}: batch {shape.batch_size}, "
        f"prompt {shape.prompt_len}, {shape.new_tokens} new tokens{', decode compiled' * first.compiled}"
    )
    kernels = {row.kernel for row in rows}
    headings = [row.name if len(kernels) == 1 else f"{row.name}, {row.kernel}" for row in rows]
    table = new_table(title, "what", *headings)
    table.add_row("parameters", *(f"{row.n_params:,}" for row in rows))
    table.add_row("prefill, tokens per second", *(f"{row.prefill_tokens_per_second:,.1f}" for row in rows))
    table.add_row("decode, tokens per second", *(f"{row.decode_tokens_per_second:,.1f}" for row in rows))
    table.add_row("prefill, ms", *_milliseconds(row.prefill_seconds for row in rows))
    table.add_row("decode, ms per token", *_milliseconds(row.decode_seconds_per_token for row in rows))
    _add_part(table, "blocks", [row.blocks for row in rows])
    _add_part(table, "head", [row.head for row in rows])
    if any(row.speedup for row in rows):
        _add_speedups(table, rows)
    table.add_row("weights", *(_size(row.weight_bytes) for row in rows))
    table.add_row("peak device memory", *(_size(row.peak_device_bytes) for row in rows))
    table.add_row("peak host memory of the process", *(_size(row.peak_host_bytes) for row in rows))
    return table


def _milliseconds(seconds: Iterable[float | None]) -> list[str]:
    return ["" if value is None else f"{1000 * value:.3f}" for value in seconds]


def _add_part(table: Table, name: str, parts: Sequence[PartLatency | None]) -> None:
    prefill = _milliseconds(part.prefill_seconds if part else None for part in parts)
    decode = _milliseconds(part.decode_seconds_per_token if part else None for part in parts)
    table.add_row(f"{name}, prefill, ms", *prefill)
    table.add_row(f"{name}, decode, ms per token", *decode)


def _add_speedups(table: Table, rows: Sequence[LatencyRecord]) -> None:
    """How many times as fast as the first model the others are."""

    def add(name: str, read: Callable[[Speedup], float]) -> None:
        cells = (f"{read(row.speedup):.2f}" if row.speedup else "1" for row in rows)
        table.add_row(f"{name}, times as fast", *cells)

    add("prefill", lambda speedup: speedup.prefill)
    add("decode", lambda speedup: speedup.decode)
    add("blocks, prefill", lambda speedup: speedup.blocks_prefill)
    add("blocks, decode", lambda speedup: speedup.blocks_decode)


def prediction_table(prediction: Prediction) -> Table:
    """What a compression will need and leave."""
    table = new_table("Predicted", "what", "value")
    table.add_row("checkpoint", _size(prediction.checkpoint_bytes))
    table.add_row("weights kept in the linears", f"{prediction.n_weights_kept:,}")
    table.add_row("one block at work on the device", _size(prediction.working_bytes))
    table.add_row("activations between blocks", _size(prediction.activation_bytes))
    return table


def _size(n_bytes: int) -> str:
    """Bytes in the largest unit of which there is at least one."""
    power = max(0, min(3, (n_bytes.bit_length() - 1) // 10))
    return f"{n_bytes / 2 ** (10 * power):,.1f} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def verification_table(verification: Verification) -> Table:
    """The linears that keep more than they may, or a line that says there are none."""
    title = f"{verification.groups:,} groups of {verification.linears} linears against {verification.pattern}"
    table = new_table(title, "linear", "groups", "violating", "first (row, input)", "kept", "allowed")
    for broken in verification.violations:
        table.add_row(
            broken.linear,
            f"{broken.groups:,}",
            f"{broken.violating:,}",
            f"{broken.row}, {broken.first_input}",
            str(broken.kept),
            str(broken.allowed),
        )
    if verification.ok:
        table.add_row("every group keeps no more than it may", "", "", "", "", "")
    return table
