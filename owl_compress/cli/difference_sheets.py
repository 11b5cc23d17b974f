"""Two documents beside each other, as tables for the terminal."""

import json
from collections.abc import Iterator, Sequence

from pydantic import JsonValue

from owl_compress.cli.sheet import Column, Sheet
from owl_compress.cli.sparklines import sparkline_note
from owl_compress.documents.differences import Difference, Quantity
from owl_compress.documents.units import Unit
from owl_compress.pages.words import as_asked, asked_name, block_numbers, number_format

_LONGEST = 44
_UNITS = {str(unit): unit for unit in Unit}


def difference_sheets(difference: Difference, names: tuple[str, str]) -> Iterator[Sheet]:
    """What is not the same, and the first quantity block by block, with the others in a line each."""
    is_same = all(a == b for quantity in difference.quantities for a, b in quantity.rows.values())
    if is_same and not difference.fields and not difference.not_comparable:
        yield Sheet(f"Two {difference.kind}s that say the same", ())
        return
    yield _fields_sheet(difference, names)
    if difference.quantities:
        yield _quantity_sheet(difference, names)


def _fields_sheet(difference: Difference, names: tuple[str, str]) -> Sheet:
    notes = [f"cannot be compared: {reason}" for reason in difference.not_comparable]
    if not difference.fields:
        return Sheet(f"Two {difference.kind}s: the same but for numbers of blocks", (), tuple(notes))
    columns = (
        Column("what", tuple(difference.fields), is_text=True),
        *(
            Column(name, tuple(_shown(pair[place]) for pair in difference.fields.values()), is_text=True)
            for place, name in enumerate(names)
        ),
    )
    return Sheet(f"Two {difference.kind}s: what differs", columns, tuple(notes))


def _shown(value: JsonValue) -> str:
    """A value on one line, cut where it is long."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _quantity_sheet(difference: Difference, names: tuple[str, str]) -> Sheet:
    first = difference.quantities[0]
    unit = _UNITS.get(first.name)
    title = asked_name(unit) if unit else first.name
    rows = [[_as_asked(value, unit) for value in pair] for pair in first.rows.values()]
    changes = [b - a if a is not None and b is not None else None for a, b in rows]
    labels, prefix = block_numbers(list(first.rows))
    form = number_format([value for row in rows for value in row if value is not None])
    columns = (
        Column(first.of, tuple(labels), is_text=not prefix),
        *(Column(name, _cells([row[place] for row in rows], form)) for place, name in enumerate(names)),
        Column("difference", _cells(changes, f"+{form}")),
    )
    notes = [sparkline_note("difference", changes, f"+{form}"), *_agreement(difference)]
    return Sheet(f"{title.capitalize()} by {first.of}", columns, tuple(note for note in notes if note))


def _as_asked(value: float | None, unit: Unit | None) -> float | None:
    return value if value is None or unit is None else as_asked(unit, value)


def _cells(values: Sequence[float | None], form: str) -> tuple[str, ...]:
    return tuple("–" if value is None else format(value, form) for value in values)


def _agreement(difference: Difference) -> Iterator[str]:
    if difference.moved is not None:
        yield f"{100 * difference.moved:.3g} % of the budget goes to other weights"
    for quantity in difference.quantities:
        told = _in_words(quantity)
        if told:
            yield f"{quantity.name}: {told}"


def _in_words(quantity: Quantity) -> str:
    """How nearly the two agree."""
    correlation = quantity.rank_correlation
    largest = max(abs(b - a) for a, b in quantity.common)
    ranks = "" if correlation is None else f"rank correlation {correlation:.4f}, "
    return f"{ranks}largest difference {largest:.4g}" if largest else "the same"
