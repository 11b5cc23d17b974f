"""Cells and columns that several tables have."""

from collections.abc import Iterable, Sequence
from typing import Any

from owl_compress.cli.sheet import Column
from owl_compress.documents.units import Unit
from owl_compress.pages.words import as_asked, block_numbers, number_format

KEPT = {Unit.DENSITY: "density", Unit.WIDTH: "width"}
"""What a share of a unit is called."""


def block_column(names: Sequence[str], *further: str) -> tuple[Column, list[str]]:
    """The column of the blocks, and what their short names stand for."""
    short, prefix = block_numbers(names)
    notes = [f"block {short[-1]} is {names[-1]}"] if prefix else []
    return Column("block", (*short, *further), is_text=not prefix), notes


def formatted(values: Sequence[float]) -> tuple[str, ...]:
    """Numbers with equally many decimals."""
    form = number_format(values)
    return tuple(format(value, form) for value in values)


def shares(values: Iterable[float]) -> tuple[str, ...]:
    """Fractions to four decimals."""
    return tuple(f"{value:.4f}" for value in values)


def as_asked_for(unit: Unit, values: Iterable[float]) -> tuple[str, ...]:
    """Values of a plan as they are asked for: sparsities to four decimals, bits to two."""
    return tuple(f"{as_asked(unit, value):.{2 if unit is Unit.BITS else 4}f}" for value in values)


def counts(values: Iterable[int]) -> tuple[str, ...]:
    """Whole numbers, thousands apart."""
    return tuple(f"{value:,}" for value in values)


def plain_value(value: Any) -> str:
    """A value of an option as people write it."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
