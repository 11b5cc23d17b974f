"""EvoPress (arXiv 2410.14649): the configuration that its searches write, one "linear: level" a line."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError, shown
from owl_compress.exports.contract import Foreign
from owl_compress.options import option

_LEVEL = re.compile(r"-?[0-9]{1,12}")


@dataclass(frozen=True)
class EvoPressConfig:
    """A level of the search among widths is a width. One of the search among sparsities counts steps.

    Level l of a linear removes `level_sparsity` + l * `weights_diff` / its number of weights; both are what
    `prune.py` was called with, and lie in metadata.pth beside its weights.
    """

    level_sparsity: float | None = option(
        None, "Sparsity of level 0; levels are bits where it is left out.", at_least=0, below=1
    )
    weights_diff: int | None = option(None, "Weights from one level to the next, as of prune.py.", at_least=1)

    name: ClassVar[str] = "evopress"

    def __post_init__(self) -> None:
        """Refuse one of the two without the other."""
        if (self.level_sparsity is None) != (self.weights_diff is None):
            raise ValueError("level_sparsity and weights_diff go together: give both, or none for bits")

    def read(self, text: str, sizes: Mapping[str, int]) -> Foreign:
        """Linears without a line are left alone."""
        values: dict[str, float] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            name, colon, level = (part.strip() for part in line.partition(":"))
            if not colon or not _LEVEL.fullmatch(level):
                raise RequestError(f"line {number} is not 'linear: level' but {shown(line)}")
            if name in values:
                raise RequestError(f"line {number} names {name} a second time")
            values[name] = self._kept(int(level), sizes.get(name))
        unit = Unit.BITS if self.level_sparsity is None else Unit.DENSITY
        return Foreign(unit, values, tuple(name for name in sizes if name not in values))

    def _kept(self, level: int, n_weights: int | None) -> float:
        if self.level_sparsity is None or self.weights_diff is None:
            return float(level)
        return 1.0 if n_weights is None else 1 - self.level_sparsity - level * self.weights_diff / n_weights
