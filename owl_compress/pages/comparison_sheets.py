"""The tables on the page of a comparison: methods with what seeds do, every cell, and what was left out."""

from collections.abc import Sequence

from pydantic import JsonValue

from owl_compress.documents.comparison import Row
from owl_compress.documents.labels import shown_value
from owl_compress.documents.units import Unit
from owl_compress.pages.page import MISSING, Cell, Column, Table
from owl_compress.pages.seeds import Figure, Method, figures_of, methods_of, speeds_of
from owl_compress.pages.words import as_asked, number_format, seconds_in_words, size_in_words


def methods_table(rows: Sequence[Row], baseline: str) -> Table | None:
    """A row for each method of each group; None where no compressed model was measured."""
    methods = methods_of([row for row in rows if not row.dense], baseline)
    if not methods:
        return None
    columns = [
        Column.of_words("group", (method.group for method in methods)),
        Column.of_words("method", (method.name for method in methods)),
        Column.of_numbers("seeds", (len(method.rows) for method in methods), "d"),
    ]
    for figure in figures_of(rows):
        columns += _of_figure(figure, methods, baseline)
    return Table("Methods by group", columns)


def _of_figure(figure: Figure, methods: Sequence[Method], baseline: str) -> list[Column]:
    spreads = [method.spreads.get(figure.name) for method in methods]
    form = _form([spread.mean for spread in spreads if spread], figure)
    columns = [Column.of_numbers(figure.name, [spread.mean if spread else None for spread in spreads], form)]
    if any(spread and spread.sd is not None for spread in spreads):
        columns.append(Column.of_numbers("± sd", [spread.sd if spread else None for spread in spreads], form))
    if any(figure.name in method.against for method in methods):
        columns.append(Column(f"against {baseline}", [_difference(method, figure) for method in methods]))
    return columns


def _form(values: Sequence[float], figure: Figure) -> str:
    """Perplexities to two decimals, shares to four, so that digits stand below each other."""
    if figure.is_ratio and values and max(values) < 1e6:
        return ",.2f"
    return number_format(values)


def _difference(method: Method, figure: Figure) -> Cell:
    paired = method.against.get(figure.name)
    if paired is None:
        return Cell(MISSING)

    def shown(value: float) -> str:
        return f"{100 * value:+.1f} %" if figure.is_ratio else f"{value:+.4f}"

    text = shown(paired.difference)
    if paired.low is not None and paired.high is not None:
        text += f" [{shown(paired.low)}, {shown(paired.high)}]"
    if paired.is_told_apart is not True:
        text += " one seed" if paired.is_told_apart is None else " as seeds"
    return Cell(text, paired.difference)


def rows_table(rows: Sequence[Row]) -> Table:
    """A row for each cell: what varies, what was spent, all figures, sizes and times."""
    names = dict.fromkeys(name for row in rows for name in row.axes)
    columns = [_axis(name, [row.axes.get(name) for row in rows]) for name in names]
    statuses = ("dense" if row.dense and row.is_measured else str(row.status) for row in rows)
    columns.append(Column.of_words("status", statuses))
    columns.append(_numbers("asked", [_as_asked(row.unit, row.asked) for row in rows], ".4f"))
    columns.append(_numbers("achieved", [_as_asked(row.unit, row.achieved) for row in rows], ".4f"))
    for figure in figures_of(rows):
        values = [figure.read(row) for row in rows]
        form = _form([one for one in values if one is not None], figure)
        columns.append(_numbers(figure.name, values, form))
        errors = [row.tasks[figure.name].stderr if figure.name in row.tasks else None for row in rows]
        columns += [_numbers("± se", errors, ".4f")] if any(one is not None for one in errors) else []
    columns += _costs(rows)
    columns.append(Column.of_words("fingerprint", (row.cell[:12] for row in rows)))
    return Table(f"Every cell, {len(rows)} of them", columns)


def _as_asked(unit: Unit | None, value: float | None) -> float | None:
    return None if unit is None or value is None else as_asked(unit, value)


def _axis(name: str, values: Sequence[JsonValue]) -> Column:
    """An axis is sorted by its numbers where all of its values are some."""
    numbers = [_number(value) for value in values]
    if [value is None for value in numbers] == [value is None for value in values]:
        return Column.told(name, numbers, lambda value: f"{value:g}")
    return Column.of_words(name, (MISSING if value is None else shown_value(value) for value in values))


def _number(value: JsonValue) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _costs(rows: Sequence[Row]) -> list[Column]:
    def in_bytes(value: float) -> str:
        return size_in_words(int(value))

    candidates = [
        Column.told("on disk", [row.bytes_on_disk for row in rows], in_bytes),
        _numbers("bits per weight", [row.bits_per_weight for row in rows], ".3f"),
        _numbers("parameters", [row.n_params for row in rows], ",.0f"),
        Column.told("time", [row.seconds.get("total") for row in rows], seconds_in_words),
        Column.told("peak memory", [row.peak_memory_bytes for row in rows], in_bytes),
        *(_numbers(name, values, ",.1f") for name, values in speeds_of([[row] for row in rows])),
    ]
    return [column for column in candidates if any(cell.order is not None for cell in column.cells)]


def _numbers(heading: str, values: Sequence[float | None], form: str) -> Column:
    return Column.of_numbers(heading, values, form)


def left_out_table(rows: Sequence[Row]) -> Table | None:
    """What was asked for and has no figures, or another budget, with its reason; None if there is none."""
    told = [row for row in rows if row.reason is not None]
    if not told:
        return None
    return Table(
        "Cells with a reason",
        [
            Column.of_words("cell", (row.name for row in told)),
            Column.of_words("group", (row.group for row in told)),
            Column.of_words("status", (str(row.status) for row in told)),
            Column.of_words("reason", (row.reason or "" for row in told)),
        ],
    )
