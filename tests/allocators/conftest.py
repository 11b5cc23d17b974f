"""Reports made from a few numbers, shared by the tests of the allocators."""

from collections.abc import Callable, Mapping, Sequence

import pytest

from owl_compress.documents.provenance import ModelIdentity, Provenance
from owl_compress.documents.report import BlockReport, ImportanceReport, LinearReport, ScoreHistogram

ReportFactory = Callable[..., ImportanceReport]

SHAPES: Mapping[str, tuple[int, int]] = {
    "attn.q": (16, 16),
    "attn.k": (8, 16),
    "attn.v": (8, 16),
    "attn.o": (16, 16),
    "mlp.gate": (40, 16),
    "mlp.up": (40, 16),
    "mlp.down": (16, 40),
}


def _histogram(score: float, n_weights: int) -> ScoreHistogram:
    """All scores within four bins; a higher score lies in higher bins and has fewer zeros."""
    quarter, n_zero = n_weights // 4, n_weights // 10
    return ScoreHistogram(
        bins_per_octave=2,
        first_bin=round(score * 4),
        counts=(n_weights - n_zero - 2 * quarter, quarter, 0, quarter),
        n_zero=n_zero,
    )


def _linear(name: str, role: str, shape: tuple[int, int], score: float) -> LinearReport:
    n_weights = shape[0] * shape[1]
    return LinearReport(
        name=name,
        role=role,
        shape=shape,
        n_weights=n_weights,
        metrics={"lod@5": score, "score_median": 1 + score, "weight_l1": n_weights * (1 + score)},
        score_histogram=_histogram(score, n_weights),
    )


def _block(score: float, shapes: Mapping[str, tuple[int, int]], name: str) -> BlockReport:
    linears = tuple(_linear(f"{name}.{role}_proj", role, shape, score) for role, shape in shapes.items())
    n_weights = sum(linear.n_weights for linear in linears)
    metrics = {"lod@5": score, "lod@10": score / 2, "score_median": 1 + score}
    return BlockReport(name=name, n_weights=n_weights, metrics=metrics, linears=linears)


@pytest.fixture(scope="session")
def make_report() -> ReportFactory:
    """Build a report from one score per block and, if they differ, one table of shapes per block."""

    def build(
        scores: Sequence[float],
        shapes: Sequence[Mapping[str, tuple[int, int]]] | Mapping[str, tuple[int, int]] = SHAPES,
        order: Sequence[int] | None = None,
    ) -> ImportanceReport:
        tables = [shapes] * len(scores) if isinstance(shapes, Mapping) else shapes
        blocks = [
            _block(score, table, f"model.layers.{index}")
            for index, (score, table) in enumerate(zip(scores, tables, strict=True))
        ]
        return ImportanceReport(
            model=ModelIdentity(id="tiny", revision=None, family="llama", dtype="float32"),
            blocks=tuple(blocks[i] for i in order) if order else tuple(blocks),
            provenance=Provenance(calibration=None, versions={}),
        )

    return build
