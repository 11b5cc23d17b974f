"""The sensitivity profile: one part after the other compressed at several levels, and the damage measured."""

from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import nn

from owl_compress.arguments import checked
from owl_compress.compression.account import method_record
from owl_compress.compression.contract import Backend
from owl_compress.compression.demands import check_has_text, check_takes_budgets, salience_for, wants_text
from owl_compress.compression.gradient_memory import settled_backend
from owl_compress.data.apart import check_apart
from owl_compress.data.windows import TokenWindows
from owl_compress.device import given_device
from owl_compress.documents.journal import check_same_method
from owl_compress.documents.notes import NO_NOTES, Notes
from owl_compress.documents.provenance import ModelIdentity
from owl_compress.documents.result import MethodRecord
from owl_compress.documents.sensitivity import (
    Measure,
    PartKind,
    ProfiledLinear,
    SensitivityProfile,
)
from owl_compress.documents.units import KeptOfGrid
from owl_compress.documents.versions import versions
from owl_compress.errors import RequestError, member
from owl_compress.importance.cost import LOCAL, ProfileCost, forward_tokens, unmeasured
from owl_compress.importance.curves import damages_of
from owl_compress.importance.damage import (
    Bench,
    DamageMeasure,
    Divergence,
    Fisher,
    Loss,
    OutputError,
    Trial,
    Tried,
)
from owl_compress.importance.extension import check_extends, check_same_parts, extended
from owl_compress.importance.levels import checked_levels
from owl_compress.importance.parts import Part, check_kind, find_parts, usual_kind
from owl_compress.importance.reference import DEFAULT_POSITIONS, DenseReference
from owl_compress.models.anatomy import find_roles
from owl_compress.models.coverage import coverage_of
from owl_compress.models.state import check_finite, identify, parameter_device
from owl_compress.models.structure import ModelStructure, check_compressible, find_structure
from owl_compress.progress import SILENT, Progress
from owl_compress.walk.agreement import settled_structure
from owl_compress.walk.blocks import BlockWalk
from owl_compress.walk.output_gradients import output_gradients
from owl_compress.walk.outputs import n_compared


@dataclass(frozen=True)
class ProfileOptions:
    """What is tried, and how damage is counted.

    Attributes:
        part: what is compressed at a time; None for what is usual in the unit, see `usual_kind`.
        levels: what each part is compressed to, in the unit of the backend, where a larger one keeps more;
            None for the usual ones, see `usual_levels`.
        grid: the M of N:M that levels are of, or None.
        measure: see `owl_compress.importance.damage`.
        positions: number of positions that measures of the model's output compare.
        names: of the linears that are in parts; None for all.
        is_optional: pass over what the backend refuses; usual levels are passed over in any case.
    """

    part: PartKind | None = None
    levels: Sequence[float] | None = None
    grid: KeptOfGrid | None = None
    measure: Measure = Measure.KL
    positions: int = DEFAULT_POSITIONS
    names: Collection[str] | None = None
    is_optional: bool = False

    def __post_init__(self) -> None:
        """Take names for what they name.

        Raises:
            RequestError: an unknown name.
        """
        object.__setattr__(self, "measure", member(Measure, self.measure, "measure"))
        if self.part is not None:
            object.__setattr__(self, "part", member(PartKind, self.part, "part"))


@dataclass(frozen=True)
class ProfileRun:
    """Where a profile runs, who is told about it, and where notes are taken of what is done."""

    device: torch.device | str | None = None
    batch_size: int = 1
    progress: Progress = SILENT
    announce: Callable[[ProfileCost], None] = field(default=lambda _: None)
    notes: Notes = NO_NOTES


@checked
def profile(
    model: nn.Module,
    backend: Backend,
    statistics: TokenWindows | None,
    damage: TokenWindows,
    options: ProfileOptions | None = None,
    run: ProfileRun | None = None,
    *,
    known: SensitivityProfile | None = None,
    structure: ModelStructure | None = None,
    identity: ModelIdentity | None = None,
) -> SensitivityProfile:
    """Compress each part of `model` alone, at several levels, and measure the damage to the model's output.

    A part is compressed on a copy of its block, with the statistics of the dense model; everything else stays
    dense. The forward pass starts at the changed block, from states that are at hand.

    Args:
        model: a causal language model; unchanged afterwards.
        backend: who compresses; any unit.
        statistics: windows the backend sees, shape [sequences, seq_len]; None for one that reads no text.
        damage: windows to measure damage on, held apart from these.
        options: what is tried, and how damage is counted.
        run: where it runs, who is told, and what was done of this very profile before.
        known: a profile of the same that is there already: only what it lacks is tried, and it is extended.
        structure: of the model, where it was found already.
        identity: what the profile says about the model; by default read from its config.

    Raises:
        RequestError: levels that the backend cannot carry out, or fewer than two; windows that overlap; a
            known profile of something else; a part that no level changes; NaN or Inf.
    """
    options, run = options or ProfileOptions(), run or ProfileRun()
    device = given_device(run.device) or parameter_device(model)
    structure = structure or find_structure(model)
    check_compressible(structure)
    check_takes_budgets(backend)
    check_has_text(backend, statistics)
    check_apart(statistics, damage)
    check_finite(model)
    structure = settled_structure(model, structure, damage.ids, device)
    backend, chosen = settled_backend(backend, model, structure, statistics, run.batch_size, device)
    profiler = _Profiler(model, structure, backend, statistics, damage, options, run, device)
    return profiler.profile(identity or identify(model, structure), chosen, known)


@dataclass(frozen=True)
class _Profiler:
    """A profile under way; everything is settled."""

    model: nn.Module
    structure: ModelStructure
    backend: Backend
    statistics: TokenWindows | None
    damage: TokenWindows
    options: ProfileOptions
    run: ProfileRun
    device: torch.device

    def profile(
        self, identity: ModelIdentity, chosen: Sequence[str], known: SensitivityProfile | None
    ) -> SensitivityProfile:
        """Measure whatever is not known yet."""
        header, unit = self._header(identity, chosen), self.backend.unit
        kind = self.options.part or usual_kind(unit)
        check_kind(kind, unit)
        levels = checked_levels(self.options.levels, unit, self.options.grid, extends=known is not None)
        if known is not None:
            check_extends(known, header, kind)
        parts = find_parts(self.structure, kind, self.options.names)
        if not parts:
            raise RequestError("no linear is left to measure: name some, or skip fewer")
        if known is not None:
            check_same_parts(known, parts)
        is_optional = self.options.is_optional or self.options.levels is None
        trials = _trials(parts, levels, known, is_optional=is_optional)
        if not trials and known is not None:
            return known
        method = header["backend"]
        check_same_method(self.run.notes.once("backend", MethodRecord, lambda: method), method)
        start = perf_counter()
        dense = DenseReference.of(
            self.model,
            self.structure,
            self.damage,
            self.device,
            n_positions=self.options.positions,
            batch_size=self.run.batch_size,
            progress=self.run.progress,
        )
        seconds_per_token = (perf_counter() - start) / self.damage.ids.numel()
        cost = self._forward_tokens(trials)
        self.run.announce(ProfileCost(len(trials), cost, cost * seconds_per_token))
        tried = self._tried(trials, dense)
        found = damages_of(parts, tried, unit, known)
        profile = SensitivityProfile(parts=found, forward_tokens=cost, **header)
        return profile if known is None else extended(known, profile)

    def _header(self, identity: ModelIdentity, chosen: Sequence[str]) -> dict[str, Any]:
        """Everything that the profile says besides what is measured."""
        roles = find_roles(self.structure)
        measure = self.options.measure
        return {
            "model": identity,
            "unit": self.backend.unit,
            "grid": self.options.grid,
            "backend": method_record(self.backend),
            "measure": measure,
            "positions": None if measure in LOCAL else n_compared(self.damage, self.options.positions),
            "linears": tuple(
                ProfiledLinear(name=linear.name, block=site.name, role=roles[linear.name], shape=linear.shape)
                for site in self.structure.blocks
                for linear in site.linears
            ),
            "statistics": self.statistics.record if self.statistics and wants_text(self.backend) else None,
            "damage_text": self.damage.record,
            "versions": versions(),
            "notes": (*self.structure.notes, *chosen),
            "coverage": coverage_of(self.structure),
        }

    def _measure(self, dense: DenseReference) -> DamageMeasure:
        match self.options.measure:
            case Measure.OUTPUT_ERROR:
                return OutputError()
            case Measure.FISHER:
                gradients = output_gradients(
                    self.model,
                    self.structure,
                    self.damage,
                    device=self.device,
                    batch_size=dense.batch_size,
                    progress=self.run.progress,
                )
                return Fisher(gradients)
        distribution = dense.distribution(self.model, self.structure)
        return Divergence(distribution) if self.options.measure is Measure.KL else Loss(distribution)

    def _tried(self, trials: Sequence[Trial], dense: DenseReference) -> list[Tried]:
        needs_inputs = self.backend.statistic is not None and self.statistics is not None
        names = {name for trial in trials for name in trial.budgets}
        bench = Bench(
            seen=BlockWalk.together(
                self.model,
                self.structure,
                self.statistics.batches(self.run.batch_size) if needs_inputs and self.statistics else (),
                device=self.device,
                may_widen=True,
            ),
            damaged=BlockWalk(
                self.model, self.structure, dense.windows.batches(dense.batch_size), device=self.device
            ),
            dense=self.structure.blocks,
            backend=self.backend,
            grid=self.options.grid,
            measure=self._measure(dense),
            salience=salience_for(
                self.backend,
                self.model,
                self.structure,
                self.statistics,
                names,
                device=self.device,
                batch_size=self.run.batch_size,
                progress=self.run.progress,
            ),
            notes=self.run.notes,
        )
        with closing(bench.tried(trials, self.run.progress)) as tried:
            found = list(tried)
        done = {one.trial.name for one in found}
        missing = [trial.name for trial in trials if trial.name not in done]
        if missing:
            raise bench.refusals[missing[0]]  # not one of its levels can be carried out
        return found

    def _forward_tokens(self, trials: Sequence[Trial]) -> float:
        n_seen = self.statistics.ids.numel() if self.statistics and self.backend.statistic else 0
        places = {site.name: index for index, site in enumerate(self.structure.blocks)}
        return forward_tokens(
            (places[trial.block] for trial in trials),
            len(places),
            self.damage.ids.numel(),
            n_seen,
            self.options.measure,
        )


def _trials(
    parts: Sequence[Part],
    levels: Sequence[float],
    known: SensitivityProfile | None,
    *,
    is_optional: bool,
) -> list[Trial]:
    """Every part at every level that is not known yet."""
    return [
        Trial(part.name, part.block, level, part.at(level), is_optional)
        for part, level in unmeasured(parts, levels, known)
    ]
