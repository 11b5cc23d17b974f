"""Reports and profiles made from a few numbers, shared by the tests of the allocators."""

from collections.abc import Callable, Mapping, Sequence

import pytest

from owl_compress.allocators import ALLOCATORS, Source, Target, allocate, reads_damage
from owl_compress.documents.plan import Plan
from owl_compress.documents.provenance import CalibrationRecord, ModelIdentity, Provenance
from owl_compress.documents.report import BlockReport, ImportanceReport, LinearReport, ScoreHistogram
from owl_compress.documents.result import MethodRecord
from owl_compress.documents.sensitivity import (
    Measure,
    PartDamage,
    PartKind,
    ProfiledLinear,
    SensitivityProfile,
)
from owl_compress.documents.units import KeptOfGrid, Unit

ReportFactory = Callable[..., ImportanceReport]
ProfileFactory = Callable[..., SensitivityProfile]
Points = Mapping[float, float]
"""Damage by level."""

_TEXT = CalibrationRecord(
    source="text.txt", token_ids_sha256="0", sequences=1, seq_len=8, sampling="first", seed=0, bos="never"
)

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
        metrics={
            "lod@5": score,
            "score_median": 1 + score,
            "weight_l1": n_weights * (1 + score),
            "alpha": 4 - score,
            "reconstruction_error": n_weights * (1 + score),
        },
        score_histogram=_histogram(score, n_weights),
    )


def _block(score: float, shapes: Mapping[str, tuple[int, int]], name: str) -> BlockReport:
    linears = tuple(_linear(f"{name}.{role}_proj", role, shape, score) for role, shape in shapes.items())
    n_weights = sum(linear.n_weights for linear in linears)
    metrics = {
        "lod@5": score,
        "lod@10": score / 2,
        "score_median": 1 + score,
        "alpha": 4 - score,
        "reconstruction_error": 1 + score,
    }
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


@pytest.fixture(scope="session")
def make_profile() -> ProfileFactory:
    """Build a profile from the damage of each part by level.

    A part is keyed by its block and, where it is less, by roles or what they begin with: "0", "0/mlp" or
    "1/attn.q+attn.k"; its linears are those of `shapes`, which may differ by block.
    """

    def build(
        parts: Mapping[str, Points],
        unit: Unit = Unit.DENSITY,
        grid: KeptOfGrid | None = None,
        shapes: Mapping[str, tuple[int, int]] | Sequence[Mapping[str, tuple[int, int]]] = SHAPES,
        kind: PartKind = PartKind.BLOCK,
        n_blocks: int = 0,
    ) -> SensitivityProfile:
        n_blocks = max(n_blocks, *(int(key.partition("/")[0]) + 1 for key in parts))
        tables = [shapes] * n_blocks if isinstance(shapes, Mapping) else shapes
        linears = [
            ProfiledLinear(
                name=f"model.layers.{i}.{role}_proj", block=f"model.layers.{i}", role=role, shape=shape
            )
            for i, table in enumerate(tables)
            for role, shape in table.items()
        ]
        found = [(*_members(key, linears), points) for key, points in parts.items()]
        return profile_of(linears, found, unit, grid, kind)

    return build


def _members(key: str, linears: Sequence[ProfiledLinear]) -> tuple[str, list[ProfiledLinear]]:
    """The name of a part, and its linears."""
    number, _, roles = key.partition("/")
    block = f"model.layers.{number}"
    wanted = tuple(f"{role}." for role in roles.split("+")) if roles else ""
    members = [one for one in linears if one.block == block and f"{one.role}.".startswith(wanted)]
    return f"{block}.{roles}" if roles else block, members


def profile_of(
    linears: Sequence[ProfiledLinear],
    parts: Sequence[tuple[str, Sequence[ProfiledLinear], Points]],
    unit: Unit,
    grid: KeptOfGrid | None = None,
    kind: PartKind = PartKind.BLOCK,
) -> SensitivityProfile:
    """A profile with these parts: name, linears, damage by level."""
    return SensitivityProfile(
        model=ModelIdentity(id="tiny", revision=None, family="llama", dtype="float32"),
        unit=unit,
        grid=grid,
        backend=MethodRecord(name="wanda"),
        measure=Measure.KL,
        linears=tuple(linears),
        parts=tuple(
            PartDamage(
                name=name,
                kind=kind,
                block=members[0].block,
                linears=tuple(one.name for one in members),
                n_weights=sum(one.n_weights for one in members),
                levels=tuple(sorted(points)),
                damage=tuple(points[level] for level in sorted(points)),
            )
            for name, members, points in parts
        ),
        statistics=None,
        damage_text=_TEXT,
        forward_tokens=0,
        versions={},
    )


@pytest.fixture(scope="session")
def read_by() -> Callable[[str, ImportanceReport, Target], Source]:
    """What an allocator reads, by its name: the report, or a profile of that model for the target."""
    return source_for


@pytest.fixture(scope="session")
def planned() -> Callable[[ImportanceReport, str, Target], Plan]:
    """The plan of an allocator, by its name, from what it reads."""

    def plan(report: ImportanceReport, name: str, target: Target) -> Plan:
        return allocate(source_for(name, report, target), name, target)

    return plan


def source_for(name: str, report: ImportanceReport, target: Target) -> Source:
    """What the allocator `name` reads: the report, or a profile of each linear of the same model.

    Damage grows with a linear's score, its size, and the cube of what is taken.
    """
    if not reads_damage(ALLOCATORS.load(name)):
        return report
    grid = target.grid if isinstance(target.grid, KeptOfGrid) else None
    shares = grid.values() if grid else (0.0, 0.25, 0.5, 0.75, 1.0)
    levels = (2.0, 3.0, 4.0) if target.unit is Unit.BITS else shares
    linears = [
        ProfiledLinear(name=one.name, block=block.name, role=one.role, shape=one.shape)
        for block in report.blocks
        for one in block.linears
    ]
    scores = {one.name: one.metrics["lod@5"] for block in report.blocks for one in block.linears}
    parts = [
        (
            one.name,
            [one],
            {
                level: (1 + scores[one.name]) * one.n_weights * (1 - level / levels[-1]) ** 3
                for level in levels
            },
        )
        for one in linears
    ]
    return profile_of(linears, parts, target.unit, grid, PartKind.LINEAR)
