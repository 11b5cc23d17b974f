"""One request on one model: everything that the steps of a run read, found once."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch

from owl_compress.arguments import checked
from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.checkpoints.narrow_config import stock_class
from owl_compress.checkpoints.stored_forms import StoredForm, suiting
from owl_compress.compression.contract import CheckpointBackend, Quantizer
from owl_compress.compression.statistics import asked_statistics
from owl_compress.consent import NO_CONSENT, Consent
from owl_compress.data.text import Chats, Text
from owl_compress.data.windows import TokenWindows, read_texts
from owl_compress.documents.coverage import check_covered
from owl_compress.documents.plan import Plan
from owl_compress.documents.provenance import ModelIdentity, StatisticsSource
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.recipe_fields import DEFAULT_MEASURE_SAMPLES
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.evaluation.tasks import Tasks
from owl_compress.models.coverage import coverage_of
from owl_compress.models.residence import refuse_streamed
from owl_compress.models.structure import ModelStructure, find_structure, found_again
from owl_compress.pipeline.recipe_texts import calibration_options, evaluation_options, read_damage_text
from owl_compress.pipeline.request import Request
from owl_compress.pipeline.scoring import tasks_of
from owl_compress.pipeline.stages import (
    check_there,
    identity_of,
    load,
)
from owl_compress.pipeline.windows import (
    calibration_windows,
    held_out_windows,
)
from owl_compress.progress import SILENT, Progress, shown
from owl_compress.walk.agreement import settled_structure
from owl_compress.walk.dense_statistics import DenseStatistics


@dataclass(frozen=True)
class Session:
    """A request and the model it is for.

    The model is compressed in place: `structure` names its blocks and linears, whatever becomes of their
    weights.

    Attributes:
        request: what is asked for.
        loaded: the model and its tokenizer.
        structure: its blocks and linears.
        identity: what reports and results say of it.
        calibration: the calibration windows; None if neither allocator nor backend looks at text.
        progress: who is told how far a step is.
        evaluation_text: what the request is to be evaluated on; None if it names none.
        damage_text: what damage is measured on, where it was read already.
        announce: who is told in a line what is about to take long.
        tasks: what accuracy is to be measured on, with their samples; None if the request names no tasks.
    """

    request: Request
    loaded: LoadedModel
    structure: ModelStructure
    identity: ModelIdentity
    calibration: TokenWindows | None
    progress: Progress = SILENT
    evaluation_text: Text | Chats | None = None
    damage_text: Text | Chats | None = None
    announce: Callable[[str], None] = lambda _: None
    tasks: Tasks | None = None
    _spent: list[bool] = field(default_factory=list, init=False, repr=False, compare=False)
    _gathered: list[DenseStatistics] = field(default_factory=list, init=False, repr=False, compare=False)

    @classmethod
    @checked
    def open(
        cls,
        request: Request | Recipe,
        loaded: LoadedModel | None = None,
        calibration: TokenWindows | None = None,
        progress: Progress = SILENT,
        consent: Consent = NO_CONSENT,
        announce: Callable[[str], None] = lambda _: None,
    ) -> "Session":
        """Read the texts, load the model of the request, find its blocks, cut the calibration into windows.

        A model that is `loaded` already, or windows that are there, are taken instead; the recipe beside a
        result then says what was asked for, and not where these came from. `consent` is what the model of a
        recipe may run; a request holds its own.

        Raises:
            RequestError: what `Request.of` and `load` refuse, an architecture that is unknown, whose blocks
                cannot be walked one by one or hold little in linears, or too little text.
        """
        if isinstance(request, Recipe):
            request = Request.of(request, consent=consent)
        recipe = request.recipe
        wanted = calibration_options(recipe) if calibration is None and looks_at_text(request) else None
        # What is wrong with names and texts is told before the model is loaded.
        if loaded is None:
            check_there(recipe.model, dtype=recipe.dtype, allow_pickle=request.consent.allow_pickle)
        text, held_out = read_texts(wanted, evaluation_options(recipe))
        asked = tasks_of(recipe)
        tasks = Tasks.of(asked, progress) if asked else None
        damage_text = text
        if request.measures_damage and (text is None or recipe.damage_data is not None):
            damage_text = read_damage_text(recipe)
        if loaded is None:
            loaded = loaded_for(recipe, request.device, request.consent, progress)
        structure = noted_structure(loaded)
        if wanted is not None:
            calibration = calibration_windows(loaded, structure, wanted, text, progress)
        if calibration is not None and looks_at_text(request):
            structure = settled_structure(loaded.model, structure, calibration.ids, request.device)
        check_covered(coverage_of(structure), partial=recipe.partial)
        identity = identity_of(loaded, structure)
        return cls(
            request,
            loaded,
            structure,
            identity,
            calibration,
            progress,
            held_out,
            damage_text if request.measures_damage else None,
            announce,
            tasks,
        )

    def on_a_copy(self) -> "Session":
        """The same session on a copy of the model, which may be compressed while this one stays dense."""
        self.check_copyable()
        loaded = replace(self.loaded, model=deepcopy(self.loaded.model))
        copy = replace(self, loaded=loaded, structure=found_again(loaded.model, self.structure))
        for statistics in self._gathered:
            copy.keep(statistics)
        return copy

    def check_copyable(self) -> None:
        """Refuse to copy a model whose blocks stay in its files.

        Raises:
            RequestError: they do.
        """
        refuse_streamed(self.loaded.model, "trying plans out on a copy of the model")

    def check_fresh(self) -> None:
        """Refuse to compress the model a second time.

        Raises:
            RequestError: it was before: what is measured and recorded next would be of another model.
        """
        if self._spent:
            raise RequestError(
                "the model of this session is compressed already: open another, or use try_out on a dense one"
            )

    def spend(self) -> None:
        """Note that a weight of the model is about to be changed; a refusal before that leaves it fresh."""
        self._spent[:] = [True]

    def keep(self, statistics: DenseStatistics) -> None:
        """Take note of what the linears of the dense model read, if that was on the calibration text."""
        asked_for = self.calibration.record if self.calibration else None
        if statistics.windows == asked_for:
            self._gathered[:] = [statistics]

    def statistics_for(self, plan: Plan) -> StatisticsSource | DenseStatistics:
        """Whose inputs the backend is told of: the dense model's, if they are known, or which."""
        if self.asks_for_dense and self.seen and self.seen.linears >= {one.name for one in plan.budgets}:
            return self.seen
        return self.request.statistics

    @property
    def seen(self) -> DenseStatistics | None:
        """What the linears of the dense model read of the calibration text, if somebody has seen it."""
        return next(iter(self._gathered), None)

    @property
    def asks_for_dense(self) -> bool:
        """Whether the backend is to be told of the dense model's inputs, and asks for any."""
        return self.request.statistics == "dense" and bool(asked_statistics(self.request.backend))

    @property
    def measure_samples(self) -> int:
        """On how many of the calibration windows importance is measured, or parts are compressed for damage.

        By default importance is on all of them where the backend is told of the dense model's inputs: one
        pass serves both.
        """
        if self.recipe.measure_samples is not None:
            return self.recipe.measure_samples
        if not self.request.measures_damage and self.asks_for_dense and self.calibration is not None:
            return len(self.calibration)
        return DEFAULT_MEASURE_SAMPLES

    @property
    def recipe(self) -> Recipe:
        """The request as it was given."""
        return self.request.recipe

    @property
    def measures(self) -> bool:
        """Whether importance has to be measured before a plan can be made."""
        return _measures(self.request)

    @property
    def writes_by_itself(self) -> bool:
        """Whether the backend writes the checkpoint."""
        return isinstance(self.request.backend, CheckpointBackend)

    @cached_property
    def measuring(self) -> TokenWindows | None:
        """Those of the calibration windows that importance is measured on; None if it is not."""
        if not self.measures or self.calibration is None:
            return None
        return self.calibration.first(self.measure_samples)

    @property
    def profiled_windows(self) -> TokenWindows | None:
        """Those of the calibration windows that the backend sees for damage; None without a calibration."""
        return None if self.calibration is None else self.calibration.first(self.measure_samples)

    @cached_property
    def text_of_damage(self) -> Text | Chats:
        """What windows of damage are drawn from."""
        return self.damage_text or read_damage_text(self.recipe)

    @cached_property
    def held_out(self) -> TokenWindows | None:
        """The windows of the evaluation text; None if the request names none."""
        options = evaluation_options(self.recipe)
        if options is None:
            return None
        return held_out_windows(self.loaded, self.structure, options, self.evaluation_text, self.progress)

    @property
    def held_out_windows(self) -> TokenWindows:
        """The same, where they cannot be done without.

        Raises:
            RequestError: the request names no evaluation text.
        """
        if self.held_out is None:
            raise RequestError("the request names no text to evaluate on: give --data")
        return self.held_out

    def check_storage(self) -> None:
        """Refuse a model whose compression cannot be stored as asked, before it is done.

        Raises:
            RequestError: codes or a family that the form does not hold, or a class of the author's own whose
                narrowed blocks no form does.
        """
        backend = self.request.backend
        if backend.unit is Unit.WIDTH:
            stock_class(self.loaded.model)
        if not self.writes_by_itself:
            codes = (
                backend.code_format if isinstance(backend, Quantizer) and self.request.keeps_codes else None
            )
            self.form.check_holds(self.loaded.model, self.structure, codes)

    @property
    def form(self) -> StoredForm:
        """The form that the model, as it is now, is stored in."""
        return self.request.export or suiting(self.loaded.model, wants_codes=self.request.keeps_codes)


def _measures(request: Request) -> bool:
    if request.allocator is not None:
        return request.allocator.reads_scores
    return any(one.allocator.reads_scores for one in request.candidates)


def looks_at_text(request: Request) -> bool:
    """Whether allocator or backend look at the calibration text."""
    return _measures(request) or request.measures_damage or request.backend.statistic is not None


def loaded_for(recipe: Recipe, device: torch.device, consent: Consent, progress: Progress) -> LoadedModel:
    """The model that a recipe names, loaded.

    Raises:
        RequestError: see `owl_compress.load`.
    """
    loading = partial(
        load,
        recipe.model,
        dtype=recipe.dtype,
        device=device,
        revision=recipe.revision,
        offload=recipe.offload,
        **consent.as_options,
    )
    return shown(progress, "loading", loading)


def noted_structure(loaded: LoadedModel) -> ModelStructure:
    """The blocks and linears of a model, with what was noted while it was loaded."""
    structure = find_structure(loaded.model)
    return replace(structure, notes=(*loaded.notes, *structure.notes))
