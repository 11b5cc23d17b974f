"""The tables of perplexity and latency."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePath

from owl_compress.cli.sheet import Column, Sheet
from owl_compress.documents.measurements import (
    AgreementRecord,
    LatencyRecord,
    PartLatency,
    PerplexityRecord,
    Speedup,
)
from owl_compress.pages.words import size_in_words


def perplexity_table(
    record: PerplexityRecord, dense: PerplexityRecord | None = None, agreement: AgreementRecord | None = None
) -> Sheet:
    """One evaluation, and what the dense model makes of the same text."""
    rows = [("perplexity", perplexity_shown(record))]
    if dense:
        rows.append(("of the dense model", perplexity_shown(dense)))
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


def perplexity_shown(record: PerplexityRecord) -> str:
    """To three decimals, or as a power of ten where it is beyond all use."""
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
