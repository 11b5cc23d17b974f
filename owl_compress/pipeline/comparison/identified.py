"""The fingerprint of every cell of a comparison, and the reasons of those that cannot be satisfied."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from owl_compress.errors import RequestError
from owl_compress.pipeline.comparison.cells import Cell
from owl_compress.pipeline.comparison.fingerprints import fingerprint
from owl_compress.pipeline.comparison.texts import Texts

if TYPE_CHECKING:
    from owl_compress.pipeline.comparison.comparison import Comparison


@dataclass(frozen=True)
class Identified:
    """Both by the place of a cell among all; a reason is there only for a cell that is refused."""

    keys: tuple[str, ...]
    refusals: dict[int, str]


def identify(comparison: "Comparison", texts: Texts) -> Identified:
    """Look at what every cell names; no model is loaded for it.

    Raises:
        RequestError: no cell can be satisfied.
    """
    keys, refusals = [], {}
    for place, cell in enumerate(comparison.cells):
        try:
            if cell.request is not None:
                texts.tasks(cell.request.recipe)
            keys.append(fingerprint(cell, comparison.measures, texts))
            reason = cell.refusal
        except RequestError as error:
            bare = Cell(cell.settings, None, str(error), cell.is_dense)
            keys.append(fingerprint(bare, comparison.measures, texts))
            reason = str(error)
        if reason is not None:
            refusals[place] = reason
    check_any(comparison.path, [refusals.get(place) for place in range(len(keys))])
    return Identified(tuple(keys), refusals)


def check_any(path: Path | None, reasons: Sequence[str | None]) -> None:
    """Refuse a grid of which no cell can be satisfied; `reasons` are why, None for one that can.

    Raises:
        RequestError: with the first reason.
    """
    if all(reason is not None for reason in reasons):
        n_more = f" (and so for all {len(reasons)} cells)" if len(reasons) > 1 else ""
        raise RequestError(f"{path}: {reasons[0]}{n_more}")
