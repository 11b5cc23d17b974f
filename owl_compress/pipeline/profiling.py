"""Sensitivity profiles of models that are loaded: for the command of that name, and on the way to a plan."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from owl_compress.allocators import Target
from owl_compress.allocators.groups import partition
from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.compression.contract import Backend, CheckpointBackend
from owl_compress.compression.demands import wants_text
from owl_compress.consent import NO_CONSENT, Consent
from owl_compress.data.windows import TokenWindows
from owl_compress.device import resolve_device
from owl_compress.documents.coverage import check_covered
from owl_compress.documents.notes import NO_NOTES, Notes
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.recipe_fields import DEFAULT_MEASURE_SAMPLES
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.importance.cost import LOCAL
from owl_compress.importance.estimator import outline
from owl_compress.memory import memory_errors
from owl_compress.models.coverage import coverage_of
from owl_compress.models.structure import ModelStructure, find_structure
from owl_compress.pipeline.facts import facts
from owl_compress.pipeline.methods import DEFAULT_BACKEND
from owl_compress.pipeline.profile_checks import by_block, check_model, check_profile
from owl_compress.pipeline.profile_settings import ProfileSettings, extending
from owl_compress.pipeline.profile_subject import ProfileForecast, Subject, Told
from owl_compress.pipeline.recipe_texts import calibration_options, read_damage_text, read_text
from owl_compress.pipeline.request import backend_of, check_options
from owl_compress.pipeline.session import Session, loaded_for
from owl_compress.pipeline.stages import check_there, identity_of
from owl_compress.pipeline.unfinished import NOTHING_KEPT, Keeping, check_finished
from owl_compress.pipeline.windows import calibration_windows
from owl_compress.progress import SILENT, Progress
from owl_compress.walk.outputs import n_compared


def profile_of(session: Session, notes: Notes = NO_NOTES) -> SensitivityProfile:
    """The profile that the request names, or one that is measured as it says; what is done of it is noted.

    Raises:
        RequestError: it is of another model; or see `Subject.profiled`.
    """
    request = session.request
    if request.profile is not None:
        check_given(session, request.profile)
        return request.profile
    if request.profiling is None:
        raise TypeError("a request whose allocator reads damage has a profile, or says how to measure it")
    return subject_of(session).profiled(request.profiling, told=session.announce, notes_for=lambda _: notes)


def check_given(session: Session, profile: SensitivityProfile) -> None:
    """Refuse a profile of something else than the session is about to compress.

    Raises:
        RequestError: naming what differs.
    """
    target = session.request.target
    if target is not None:
        grid = target.grid if isinstance(target.grid, KeptOfGrid) else None
        check_profile(profile, session.request.backend, target.unit, grid)
    check_model(profile, session.identity, session.structure)


def subject_of(session: Session) -> Subject:
    """What the session would profile, on the first of its calibration windows: linears that budgets are for.

    Raises:
        RequestError: a skip or pin that names nothing.
    """
    target, backend, statistics = session.request.target, session.request.backend, session.profiled_windows
    if target is None or statistics is None or isinstance(backend, CheckpointBackend):
        raise TypeError("a profile is measured for a target, by a backend that compresses single blocks")
    model = outline(session.loaded.model, session.identity, session.structure)
    split = partition(model, target)
    return Subject(
        loaded=session.loaded,
        structure=session.structure,
        identity=session.identity,
        backend=backend,
        statistics=statistics,
        text=session.text_of_damage,
        names=frozenset(session.structure.linear_sizes) - split.skipped - split.pinned.keys(),
        recipe=session.recipe,
        progress=session.progress,
    )


@dataclass(frozen=True)
class Profiling:
    """A profile that is asked for by itself, checked before the model is loaded."""

    recipe: Recipe
    backend: Backend
    settings: ProfileSettings
    known: SensitivityProfile | None
    consent: Consent
    device: torch.device

    @classmethod
    def of(
        cls,
        model: str,
        given: Mapping[str, object],
        known: SensitivityProfile | None = None,
        consent: Consent = NO_CONSENT,
    ) -> "Profiling":
        """The profile that options ask for, under their names in a recipe.

        Raises:
            RequestError: a backend that cannot compress a part alone, or options that cannot be meant.
        """
        # A recipe whose plan is still to be made: it says nothing of the budget.
        fixed = {"model": model, "plan": "open", "backend": DEFAULT_BACKEND}
        recipe = Recipe.from_options(fixed | dict(given), "options")
        if known is not None:
            recipe = extending(recipe, known)
        if "samples" not in recipe.model_fields_set:
            recipe = recipe.with_options({"samples": DEFAULT_MEASURE_SAMPLES})
        check_options(recipe)
        backend = by_block(backend_of(recipe))
        device = resolve_device(recipe.device)
        settings = ProfileSettings.of(recipe, backend.unit, extends=known is not None)
        return cls(recipe, backend, settings, known, consent, device)

    def run(
        self,
        progress: Progress = SILENT,
        told: Told = lambda _: None,
        keeping: Keeping = NOTHING_KEPT,
    ) -> SensitivityProfile:
        """Load the model and measure, as far as that is not done: what is, is kept by `keeping`.

        Raises:
            RequestError: see `owl_compress.load`, `calibrate` and `Subject.profiled`; or what is kept, or
                finished, is of something else.
        """
        with memory_errors("measuring damage"):
            subject = self._subject(progress)
            if keeping.is_finished:
                return check_finished_profile(keeping.out, subject, self.settings, self.known)
            return subject.profiled(
                self.settings,
                self.known,
                told,
                lambda damage: keeping.notes(lambda: self._depends_on(subject, damage)),
            )

    def forecast(self, progress: Progress = SILENT) -> ProfileForecast:
        """Load the model, and say what `run` would try and what it takes; one dense pass is timed.

        Raises:
            RequestError: see `run`.
        """
        with memory_errors("measuring damage"):
            return self._subject(progress).forecast(self.settings, self.known)

    def _subject(self, progress: Progress) -> Subject:
        recipe, options = self.recipe, calibration_options(self.recipe)
        check_there(recipe.model, dtype=recipe.dtype, allow_pickle=self.consent.allow_pickle)
        is_read = recipe.damage_data is None or wants_text(self.backend)
        text = read_text(options) if is_read else None
        damage_text = text if recipe.damage_data is None else read_damage_text(recipe)
        if damage_text is None:
            raise TypeError("damage is measured on some text")
        loaded = loaded_for(recipe, self.device, self.consent, progress)
        structure = find_structure(loaded.model)
        check_covered(coverage_of(structure), partial=recipe.partial)
        return Subject(
            loaded=loaded,
            structure=structure,
            identity=identity_of(loaded, structure),
            backend=self.backend,
            statistics=calibration_windows(loaded, structure, options, text, progress) if text else None,
            text=damage_text,
            names=_not_skipped(loaded, structure, recipe),
            recipe=recipe,
            progress=progress,
        )

    def _depends_on(self, subject: Subject, damage: TokenWindows) -> dict[str, str]:
        texts = {"calibration": subject.statistics, "damage": damage}
        found = facts(subject.loaded, self.recipe.settings, self.device, texts)
        return found | ({"the profile to extend": self.known.fingerprint[:16]} if self.known else {})


def check_finished_profile(
    out: Path, subject: Subject, settings: ProfileSettings, known: SensitivityProfile | None = None
) -> SensitivityProfile:
    """The profile that is there, if it is what is asked for; it may extend a `known` one.

    Raises:
        RequestError: naming what differs, or is lacking.
    """
    done = SensitivityProfile.read(out)
    check_profile(done, subject.backend, subject.backend.unit, settings.grid)
    check_model(done, subject.identity, subject.structure)
    affordable, _ = subject.affordable(settings)
    says_asked = done.unit is not Unit.WIDTH or any(part.asked for part in done.parts)
    asked = set(settings.levels) if says_asked and not settings.are_levels_open else set[float]()
    lacking = {level for level in asked if any(level not in part.known for part in done.parts)}
    damage = subject.damage_windows(affordable)
    n_positions = None if settings.measure in LOCAL else n_compared(damage, settings.positions)
    names = subject.names | (known.measured_linears if known else frozenset())
    check_finished(
        out,
        {
            "--part": (done.parts[0].kind, settings.part),
            "--measure": (done.measure, settings.measure),
            "the damage text": (done.damage_text, damage.record),
            "the calibration text": (
                done.statistics,
                subject.statistics.record if subject.statistics and wants_text(subject.backend) else None,
            ),
            "--levels": (sorted(asked - lacking), sorted(asked)),
            "--positions": (done.positions, n_positions if done.positions else None),
            "what is measured (--skip, --parts)": _with_or_without(done.measured_linears, names),
        },
    )
    return done


def _with_or_without(there: Collection[str], asked: Collection[str]) -> tuple[str, str]:
    """Both in words: a name that only one of them has, if there is any."""
    if not (different := set(there) ^ set(asked)):
        return "", ""
    name = min(different)
    words = f"with {name}", f"without {name}"
    return words if name in there else words[::-1]


def _not_skipped(loaded: LoadedModel, structure: ModelStructure, recipe: Recipe) -> frozenset[str]:
    everything_kept = Target(
        Unit.DENSITY,
        1.0,
        skips=recipe.skip,
        parts=recipe.parts,
        protect_first=recipe.protect_first,
        protect_last=recipe.protect_last,
    )
    skipped = partition(outline(loaded.model, structure=structure), everything_kept).skipped
    return frozenset(linear.name for linear in structure.linears) - skipped
