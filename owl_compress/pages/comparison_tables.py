"""A comparison as tables: Markdown for people, CSV for spreadsheets."""

import csv
from collections.abc import Iterable, Sequence
from io import StringIO
from typing import Any

from owl_compress.documents.comparison import Row, Status
from owl_compress.pages.markdown import table
from owl_compress.pages.seeds import Figure, Method, Paired, Spread, figures_of, methods_of, speeds_of
from owl_compress.pages.words import figure_in_words
from owl_compress.plain_text import plain


def comparison_table(rows: Sequence[Row], baseline: str = "uniform") -> str:
    """The rows as a page of Markdown: dense models, methods by group, and what was not carried out."""
    figures = figures_of(rows)
    parts = ["# Comparison"]
    dense = [row for row in rows if row.dense and row.is_measured]
    methods = methods_of([row for row in rows if not row.dense], baseline)
    speeds = [name for name, _ in speeds_of([[row] for row in dense] + [one.rows for one in methods])]
    if dense:
        heads = ["model", *(figure.name for figure in figures), *_SIZES, *speeds]
        parts.append(table(heads, (_dense_cells(row, figures, speeds) for row in dense)))
    for group in dict.fromkeys(method.group for method in methods):
        members = [method for method in methods if method.group == group]
        has_base = any(method.is_baseline for method in members)
        parts.append(f"## {plain(group)}")
        parts.append(
            table(
                [*_columns(figures, has_base=has_base), *speeds],
                ([*_cells(one, figures, has_base=has_base), *_speeds(one.rows, speeds)] for one in members),
            )
        )
    parts += _of_seeds(methods, baseline)
    parts += _left_out(rows)
    return "\n\n".join(parts) + "\n"


def _dense_cells(row: Row, figures: Sequence[Figure], speeds: Sequence[str]) -> list[str]:
    values = [figure_in_words(figure.read(row)) for figure in figures]
    return [row.name, *values, *_sizes([row]), *_speeds([row], speeds)]


def _speeds(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """The figures of these names, empty where nothing was timed."""
    found = dict(speeds_of([rows]))
    return [figure_in_words(found[name][0]) if name in found else "" for name in names]


_SIZES = ["bytes on disk", "bits per weight", "parameters", "seconds"]


def _sizes(rows: Sequence[Row]) -> list[str]:
    first = rows[0]
    seconds = [row.seconds.get("total", 0.0) for row in rows]
    return [
        "" if first.bytes_on_disk is None else f"{first.bytes_on_disk:,}",
        figure_in_words(first.bits_per_weight),
        "" if first.n_params is None else f"{first.n_params:,}",
        f"{sum(seconds) / len(seconds):,.1f}",
    ]


def _columns(figures: Sequence[Figure], *, has_base: bool) -> list[str]:
    measured: list[str] = []
    for figure in figures:
        measured += [figure.name, "difference"] if has_base else [figure.name]
    return ["method", "kept", *measured, *_SIZES]


def _cells(method: Method, figures: Sequence[Figure], *, has_base: bool) -> list[str]:
    kept = Spread.of([row.achieved for row in method.rows if row.achieved is not None] or [0.0])
    measured: list[str] = []
    for figure in figures:
        measured.append(_spread(method.spreads.get(figure.name)))
        if has_base:
            measured.append("" if method.is_baseline else _paired(method.against.get(figure.name), figure))
    drifted = " (drifted)" if any(row.status is Status.DRIFTED for row in method.rows) else ""
    return [method.name + drifted, f"{kept.mean:.4f}", *measured, *_sizes(method.rows)]


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    if spread.sd is None:
        return figure_in_words(spread.mean)
    mean, low, high = map(figure_in_words, (spread.mean, spread.low, spread.high))
    return f"{mean} ± {figure_in_words(spread.sd, 2)} ({low} to {high})"


def _paired(paired: Paired | None, figure: Figure) -> str:
    if paired is None:
        return ""

    def shown(value: float) -> str:
        return f"{value:+.1%}" if figure.is_ratio else f"{value:+.3g}"

    text = shown(paired.difference)
    if paired.low is None or paired.high is None:
        return text
    told = "" if paired.is_told_apart else ", no more than seeds do"
    return f"{text} [{shown(paired.low)}, {shown(paired.high)}]{told}"


def _of_seeds(methods: Iterable[Method], baseline: str) -> list[str]:
    """How spreads and differences are to be read, as far as there are any."""
    methods = list(methods)
    if methods and not any(method.is_baseline for method in methods):
        return [f"No cell is of allocator `{plain(baseline)}`, the baseline: nothing is compared with it."]
    if not any(method.against for method in methods):
        return []
    text = f"Differences are from `{baseline}` in the same group, perplexities in percent."
    if any(len(method.rows) > 1 for method in methods):
        text += (
            " Over seeds: mean ± standard deviation (smallest to largest); differences are the mean over the "
            "seeds that both have, of logarithms for perplexity, with Student's 95 % interval in brackets. "
            "Where the interval holds zero, the difference is no more than seeds do."
        )
    if any(paired.low is None for method in methods for paired in method.against.values()):
        text += " A difference of one seed has no interval and may be chance."
    return [text]


def _left_out(rows: Iterable[Row]) -> list[str]:
    """What was asked for and has no figures, or another budget, each with its reason."""
    told = [row for row in rows if row.reason is not None]
    if not told:
        return []
    cells = ([row.name, row.group, str(row.status), row.reason or ""] for row in told)
    return ["## Refused, failed or drifted", table(["cell", "group", "status", "reason"], cells)]


def rows_as_csv(rows: Sequence[Row]) -> str:
    """One line for each row, all that is a number or a word in it."""
    axes = dict.fromkeys(name for row in rows for name in row.axes)
    figures = figures_of(rows)
    errors = dict.fromkeys(name for row in rows for name in row.tasks)
    stages = dict.fromkeys(name for row in rows for name in row.seconds)
    speeds = dict(speeds_of([[row] for row in rows]))
    lines: list[list[Any]] = [
        [
            "cell", "name", "group", "dense", "status", "reason", *axes, "unit", "asked", "achieved",
            *(figure.name for figure in figures), *(f"{name} stderr" for name in errors), "bytes_on_disk",
            "bits_per_weight", "n_params", *(f"seconds {name}" for name in stages), "peak_memory_bytes",
            *(_in_csv(name) for name in speeds),
        ]
    ]  # fmt: skip
    lines += [
        [
            row.cell, row.name, row.group, row.dense, row.status, row.reason,
            *(row.axes.get(name) for name in axes), row.unit, row.asked, row.achieved,
            *(figure.read(row) for figure in figures),
            *(row.tasks[name].stderr if name in row.tasks else None for name in errors),
            row.bytes_on_disk, row.bits_per_weight, row.n_params,
            *(row.seconds.get(name) for name in stages), row.peak_memory_bytes,
            *(values[number] for values in speeds.values()),
        ]
        for number, row in enumerate(rows)
    ]  # fmt: skip
    return _csv(lines)


def _in_csv(heading: str) -> str:
    """A heading as one word: "prefill, tokens/s" is prefill_tokens_per_second."""
    return heading.replace(", ", "_").replace("/s", "_per_second")


def summary_as_csv(rows: Sequence[Row], baseline: str = "uniform") -> str:
    """One line for each method and figure: its spread over seeds, and how it differs from the baseline."""
    figures = figures_of(rows)
    lines: list[list[Any]] = [
        [
            "group", "method", "figure", "seeds", "mean", "sd", "min", "max", "baseline", "pairs",
            "difference", "low", "high", "larger_than_seeds",
        ]
    ]  # fmt: skip
    for method in methods_of([row for row in rows if not row.dense], baseline):
        for figure in figures:
            spread, paired = method.spreads.get(figure.name), method.against.get(figure.name)
            if spread is None:
                continue
            line: list[Any] = [
                method.group, method.name, figure.name, spread.n, spread.mean, spread.sd, spread.low,
                spread.high,
            ]  # fmt: skip
            if paired is not None:
                line += [baseline, paired.n, paired.difference, paired.low, paired.high, paired.is_told_apart]
            lines.append(line + [None] * (len(lines[0]) - len(line)))
    return _csv(lines)


def _csv(lines: Iterable[Sequence[Any]]) -> str:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
