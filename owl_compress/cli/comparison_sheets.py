"""A comparison as tables on the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from owl_compress.cli.sheet import Column, Sheet
from owl_compress.cli.watching import duration
from owl_compress.documents.comparison import Row
from owl_compress.pages.seeds import Figure, Method, Paired, Spread, figures_of, methods_of, speeds_of
from owl_compress.pages.words import figure_in_words

if TYPE_CHECKING:
    from owl_compress.pipeline.comparison.cost import CellCost

_AS_SEEDS, _ONE_SEED = "as seeds", "one seed"
"""What a difference is that seeds do not tell from none, or cannot."""


def rows_sheet(rows: Sequence[Row], baseline: str) -> Sheet:
    """One line for each method, with its spread over seeds and its difference from the baseline."""
    figures = figures_of(rows)
    dense = [row for row in rows if row.dense and row.is_measured]
    methods = methods_of([row for row in rows if not row.dense], baseline)
    columns = [
        Column("group", (*(row.name for row in dense), *(one.group for one in methods)), is_text=True),
        Column("method", (*("" for _ in dense), *(one.name for one in methods)), is_text=True),
        Column("kept", (*("" for _ in dense), *(_kept(one) for one in methods))),
    ]
    for figure in figures:
        values = [
            *(figure_in_words(figure.read(row)) for row in dense),
            *(_spread(one, figure) for one in methods),
        ]
        columns.append(Column(figure.name, tuple(values)))
        changes = [_paired(one.against.get(figure.name), figure) for one in methods]
        if any(changes):
            columns.append(Column(f"vs {baseline}", (*("" for _ in dense), *changes), is_optional=True))
    first = [*dense, *(one.rows[0] for one in methods)]
    columns.append(Column("MB", tuple(_megabytes(row) for row in first), is_optional=True))
    columns.append(
        Column("bits/weight", tuple(figure_in_words(row.bits_per_weight) for row in first), is_optional=True)
    )
    columns += [
        Column(heading, tuple(map(figure_in_words, speeds)), is_optional=True)
        for heading, speeds in speeds_of([[row] for row in dense] + [one.rows for one in methods])
    ]
    notes = _legend(columns) + [
        f"{row.status}: {row.name} ({row.group}): {row.reason}" for row in rows if row.reason is not None
    ]
    return Sheet(f"Comparison, {len(rows)} cells", tuple(columns), tuple(notes))


def costs_sheet(costs: "Sequence[CellCost]") -> Sheet:
    """One line for each cell that is to be."""
    tokens, seconds = sum(one.forward_tokens for one in costs), sum(one.seconds for one in costs)
    n_left = sum(not one.note for one in costs)
    columns = (
        Column("cell", tuple(one.cell.name for one in costs), is_text=True),
        Column("group", tuple("" if one.cell.is_dense else one.cell.group for one in costs), is_text=True),
        Column("forward tokens", tuple("" if one.note else f"{one.forward_tokens:,}" for one in costs)),
        Column("at least", tuple("" if one.note else duration(one.seconds) for one in costs)),
        Column("note", tuple(one.note for one in costs), is_text=True),
    )
    notes = (
        f"{n_left} of {len(costs)} cells to carry out: {tokens:,} tokens through the model, "
        f"{duration(seconds)} at the speed of the dense model here; what backends and tasks do comes on top",
    )
    return Sheet(f"{len(costs)} cells", columns, notes)


def _kept(method: Method) -> str:
    spent = [row.achieved for row in method.rows if row.achieved is not None]
    return f"{sum(spent) / len(spent):.4f}" if spent else ""


def _spread(method: Method, figure: Figure) -> str:
    spread: Spread | None = method.spreads.get(figure.name)
    if spread is None:
        return ""
    return figure_in_words(spread.mean) + ("" if spread.sd is None else f" ± {figure_in_words(spread.sd, 2)}")


def _paired(paired: Paired | None, figure: Figure) -> str:
    if paired is None:
        return ""
    shown = f"{paired.difference:+.1%}" if figure.is_ratio else f"{paired.difference:+.3g}"
    return shown + {True: "", False: f" ({_AS_SEEDS})", None: f" ({_ONE_SEED})"}[paired.is_told_apart]


def _legend(columns: Sequence[Column]) -> list[str]:
    """What the words behind differences mean, as far as there are any."""
    words = {
        _AS_SEEDS: "the 95 % interval over seeds holds zero: no more than seeds do",
        _ONE_SEED: "it has no interval and may be chance; give several under `seed`",
    }
    cells = [cell for column in columns for cell in column.cells]
    return [f"{word}: {text}" for word, text in words.items() if any(f"({word})" in cell for cell in cells)]


def _megabytes(row: Row) -> str:
    return "" if row.bytes_on_disk is None else f"{row.bytes_on_disk / 1e6:,.1f}"
