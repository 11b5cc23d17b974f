"""What `--allocator auto` tried, as a table that can be sorted."""

from owl_compress.documents.tuning import TriedCandidate, TuningDocument
from owl_compress.pages.page import Column, Table
from owl_compress.pages.tuning_words import fate_in_words, ranked


def tried_table(document: TuningDocument) -> Table:
    """Every candidate with its damage in each round, the plan that was taken first."""
    rows = ranked(document)
    rounds = [
        Column.of_numbers(f"round {number + 1}", [_damage(one, number) for one in rows], ".4g")
        for number in range(len(document.rounds))
    ]
    return Table(
        "Every plan that was tried; damage (KL) in nats, on windows that no other round saw",
        [
            Column.of_words("candidate", [one.name for one in rows]),
            *rounds,
            Column.of_words("what became of it", [fate_in_words(one) for one in rows]),
        ],
    )


def _damage(one: TriedCandidate, number: int) -> float | None:
    return one.damage[number] if number < len(one.damage) else None
