"""The estimator: how important is each block and linear of a model? Measured once, in one forward pass."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import nn

from owl_compress.arguments import checked
from owl_compress.data.windows import TokenWindows
from owl_compress.device import given_device
from owl_compress.documents.coverage import check_covered
from owl_compress.documents.journal import MeasuredBlock, SeenModel
from owl_compress.documents.notes import NO_NOTES, Notes
from owl_compress.documents.provenance import ModelIdentity, Provenance
from owl_compress.documents.recipe_fields import ActivationsName
from owl_compress.documents.report import BlockReport, ImportanceReport, LinearReport
from owl_compress.documents.versions import versions
from owl_compress.errors import RequestError
from owl_compress.importance.metrics import DEFAULT_METRICS, Metric, find_metric, reads_gram
from owl_compress.models.anatomy import find_roles
from owl_compress.models.coverage import coverage_of
from owl_compress.models.state import identify, parameter_device
from owl_compress.models.structure import (
    BlockSite,
    LinearSite,
    ModelStructure,
    check_compressible,
    find_structure,
)
from owl_compress.progress import SILENT, Progress
from owl_compress.walk.agreement import settled_structure
from owl_compress.walk.blocks import BlockVisit, BlockWalk
from owl_compress.walk.dense_statistics import DenseStatistics, KeptGroup, note_of
from owl_compress.walk.gathering import LinearGroup
from owl_compress.walk.input_statistics import MomentsAndGram, SecondMoments, Statistic
from owl_compress.walk.noted import each_once
from owl_compress.walk.scores import ScoredWeight, ScorePool, pooled


@checked
def measure(  # noqa: PLR0913 - each is an option of the command line, too
    model: nn.Module,
    calibration: TokenWindows,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    partial: bool = False,
    device: torch.device | str | None = None,
    batch_size: int = 1,
    structure: ModelStructure | None = None,
    identity: ModelIdentity | None = None,
    progress: Progress = SILENT,
    activations: ActivationsName = "auto",
) -> ImportanceReport:
    """Measure the importance of every block and linear of `model` on the `calibration` tokens.

    Scores are A_ij = |W_ij| * ‖X_j‖_2 with the norm over all calibration tokens (Wanda, arXiv 2306.11695;
    OWL, arXiv 2310.05175, section 3). The metrics of a block pool the scores of all its linears and use one
    mean for the whole block, those of a linear its own mean. The dense model's own activations are used.
    Each block runs once per batch, after a first look whether that is how the model runs it. Processes that
    have joined a group of torch.distributed divide the batches, and come to the same report each.

    Args:
        model: a causal language model; unchanged afterwards.
        calibration: token windows, shape [sequences, seq_len].
        metrics: names such as "lod@5"; see `owl_compress.importance.metrics`.
        partial: go on where less than half of the weights in the blocks is in linears that can be measured.
        device: where blocks are run; by default where the model is.
        batch_size: sequences per forward pass; changes nothing but speed, up to rounding.
        structure: of the model, where it was found already.
        identity: what the report says about the model; by default read from its config.
        progress: told about every block.
        activations: where hidden states wait between blocks; "auto" is the first place with room.

    Raises:
        RequestError: unknown metric or architecture, one whose blocks cannot be walked one by one, or whose
            weights lie elsewhere than in linears, or activations with NaN or Inf.
    """
    return measure_with_statistics(
        model,
        calibration,
        metrics=metrics,
        partial=partial,
        device=device,
        batch_size=batch_size,
        structure=structure,
        identity=identity,
        progress=progress,
        activations=activations,
    ).report


@dataclass(frozen=True)
class Measured:
    """The report, and the statistics that it was made from: a backend may want the same ones."""

    report: ImportanceReport
    statistics: DenseStatistics


@checked
def measure_with_statistics(  # noqa: PLR0913 - those of `measure`, and notes
    model: nn.Module,
    calibration: TokenWindows,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    partial: bool = False,
    device: torch.device | str | None = None,
    batch_size: int = 1,
    structure: ModelStructure | None = None,
    identity: ModelIdentity | None = None,
    progress: Progress = SILENT,
    activations: ActivationsName = "auto",
    notes: Notes = NO_NOTES,
) -> Measured:
    """Measure as `measure` does, and hand the statistics of the inputs on.

    `notes` are of this very measurement, where it may have been cut off: blocks that are noted are not
    measured again, nor run again as far as what they hand on is kept.

    Raises:
        RequestError: see `measure`; or what is kept is broken, or the disk is full.
    """
    device = given_device(device)
    structure = structure or find_structure(model)
    check_compressible(structure)
    chosen = {name: find_metric(name) for name in metrics}
    structure = settled_structure(model, structure, calibration.ids, device)
    coverage = coverage_of(structure)
    check_covered(coverage, partial=partial)
    roles = find_roles(structure)
    walk = BlockWalk.together(
        model,
        structure,
        calibration.batches(batch_size),
        device=device or parameter_device(model),
        keep_on=activations,
        may_widen=True,
    )
    wanted: type[Statistic] = MomentsAndGram if any(map(reads_gram, chosen.values())) else SecondMoments

    def has_linears(site: BlockSite) -> bool:
        return bool(site.linears)  # all weights may be shared with an earlier block

    def measured(visit: BlockVisit) -> MeasuredBlock:
        groups = visit.gather(wanted, advance=True, spared=structure.spared)
        report = _measure_block(visit.site, groups, chosen, roles)
        return MeasuredBlock(report=report, seen=note_of(map(KeptGroup.of, groups)))

    found = each_once(walk, has_linears, MeasuredBlock, measured, notes, progress, "measuring blocks")
    report = ImportanceReport(
        model=identity or identify(model, structure),
        blocks=tuple(one.report for one in found.values()),
        provenance=Provenance(calibration=calibration.record, versions=versions()),
        notes=structure.notes,
        coverage=coverage,
    )
    seen = SeenModel(blocks={name: one.seen for name, one in found.items()})
    return Measured(report, DenseStatistics.noted(seen, calibration.record))


def outline(
    model: nn.Module, identity: ModelIdentity | None = None, structure: ModelStructure | None = None
) -> ImportanceReport:
    """The report of a model that nobody measured: names and sizes, for allocators that look at no more."""
    structure = structure or find_structure(model)
    check_compressible(structure)
    roles = find_roles(structure)
    blocks = [
        BlockReport(
            name=site.name,
            n_weights=site.n_weights,
            metrics={},
            linears=tuple(
                LinearReport(
                    name=linear.name,
                    role=roles[linear.name],
                    shape=linear.shape,
                    n_weights=linear.n_weights,
                    metrics={},
                )
                for linear in site.linears
            ),
        )
        for site in structure.blocks
        if site.linears
    ]
    return ImportanceReport(
        model=identity or identify(model, structure),
        blocks=tuple(blocks),
        provenance=Provenance(calibration=None, versions=versions()),
        notes=structure.notes,
        coverage=coverage_of(structure),
    )


def _measure_block(
    site: BlockSite, groups: Iterable[LinearGroup], metrics: dict[str, Metric], roles: dict[str, str]
) -> BlockReport:
    pools: dict[str, ScorePool] = {}
    for group in groups:
        norms = group.statistic.second_moments.sqrt().float()  # [in]
        gram = group.statistic.gram.matrix if isinstance(group.statistic, MomentsAndGram) else None
        pools |= {
            linear.name: ScorePool((ScoredWeight(linear.weight, norms, gram),)) for linear in group.linears
        }
    reached = [pools[linear.name] for linear in site.linears if linear.name in pools]
    return BlockReport(
        name=site.name,
        n_weights=site.n_weights,
        linears=tuple(
            _measure_linear(linear, roles[linear.name], pools.get(linear.name), metrics)
            for linear in site.linears
        ),
        metrics=_evaluate(site.name, pooled(reached), metrics) if reached else {},
    )


def _measure_linear(
    linear: LinearSite, role: str, pool: ScorePool | None, metrics: dict[str, Metric]
) -> LinearReport:
    return LinearReport(
        name=linear.name,
        role=role,
        shape=linear.shape,
        n_weights=linear.n_weights,
        metrics=_evaluate(linear.name, pool, metrics) if pool else {},
        score_histogram=pool.histogram() if pool else None,
    )


def _evaluate(where: str, pool: ScorePool, metrics: dict[str, Metric]) -> dict[str, float]:
    if not isfinite(pool.mean):
        raise RequestError(
            f"{where} holds NaN or Inf, or overflows: check the checkpoint, or try --dtype float32"
        )
    values = {name: metric(pool) for name, metric in metrics.items()}
    for name, value in values.items():
        if not isfinite(value):
            raise RequestError(f"metric {name} of {where} is {value}: leave it out")
    return values
