"""What `--allocator auto` tried, in words: for the terminal and for pages."""

from collections.abc import Sequence
from math import inf

from owl_compress.documents.tuning import TriedCandidate, TuningDocument

_FATES = {"chosen": "taken", "baseline": "equal shares", "beaten": ""}


def tried_in_words(document: TuningDocument) -> Sequence[str]:
    """The rounds, equal shares, why a plan was taken, and what all of it cost."""
    rounds = "; ".join(
        f"{one.plans} plans, {one.statistics_windows} windows of statistics, judged on {one.judging_windows}"
        for one in document.rounds
    )
    return [
        *([f"damage (kl) in nats; rounds: {rounds}"] if rounds else []),
        f"equal shares: {document.baseline}",
        f"{document.chosen.name} is taken: {document.why}",
        f"cost: {document.forward_tokens:,.0f} tokens through the model",
    ]


def ranked(document: TuningDocument) -> list[TriedCandidate]:
    """Who was taken first, then whoever came further, then who did less damage."""

    def place(one: TriedCandidate) -> tuple[bool, int, float, str]:
        last = one.damage[-1] if one.damage else None
        return one.fate != "chosen", -len(one.damage), inf if last is None else last, one.name

    return sorted(document.candidates, key=place)


def fate_in_words(one: TriedCandidate) -> str:
    """What became of a candidate; nothing where others were better."""
    if one.same_as is not None:
        return f"the plan of {one.same_as}"
    return f"refused: {one.reason}" if one.reason else _FATES[one.fate]
