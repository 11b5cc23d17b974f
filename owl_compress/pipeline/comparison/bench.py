"""One model in memory for all cells that are made of it, with its windows, put back between cells."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.data.windows import CalibrationOptions, EvaluationOptions, TokenWindows
from owl_compress.documents.coverage import check_covered
from owl_compress.documents.provenance import ModelIdentity
from owl_compress.evaluation.predictions import DensePredictions, dense_predictions
from owl_compress.models.coverage import coverage_of
from owl_compress.models.residence import refuse_streamed
from owl_compress.models.snapshot import ModelSnapshot
from owl_compress.models.structure import ModelStructure
from owl_compress.pipeline.comparison.texts import Texts
from owl_compress.pipeline.recipe_texts import calibration_options, damage_text_options
from owl_compress.pipeline.request import Request
from owl_compress.pipeline.session import Session, loaded_for, looks_at_text, noted_structure
from owl_compress.pipeline.stages import (
    check_there,
    identity_of,
)
from owl_compress.pipeline.windows import (
    calibration_windows,
    held_out_windows,
)
from owl_compress.progress import SILENT, Progress
from owl_compress.walk.agreement import settled_structure


@dataclass
class Bench:
    """A dense model and what was found out about it.

    Attributes:
        loaded, structure, identity: the model.
        snapshot: what it was, bit by bit.
        texts: that windows are cut out of.
        progress: who is told how far a step is.
        key: what tells the checkpoint from others.
    """

    loaded: LoadedModel
    structure: ModelStructure
    identity: ModelIdentity
    snapshot: ModelSnapshot
    texts: Texts
    key: str
    progress: Progress = SILENT
    announce: Callable[[str], None] = lambda _: None
    _settled: ModelStructure | None = None
    _calibration: dict[CalibrationOptions, TokenWindows] = field(default_factory=dict)
    _evaluation: dict[EvaluationOptions, TokenWindows] = field(default_factory=dict)
    _predictions: dict[EvaluationOptions, DensePredictions] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        request: Request,
        texts: Texts,
        progress: Progress = SILENT,
        announce: Callable[[str], None] = lambda _: None,
    ) -> "Bench":
        """Load the model of a request and take its snapshot.

        Raises:
            RequestError: see `owl_compress.load`, a model that is read block by block, or an
                architecture that is unknown.
        """
        recipe = request.recipe
        check_there(recipe.model, dtype=recipe.dtype, allow_pickle=request.consent.allow_pickle)
        loaded = loaded_for(recipe, request.device, request.consent, progress)
        refuse_streamed(loaded.model, "comparing what is made of one model")
        structure = noted_structure(loaded)
        identity = identity_of(loaded, structure)
        snapshot = ModelSnapshot.of(loaded.model)
        return cls(loaded, structure, identity, snapshot, texts, texts.model(recipe), progress, announce)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let the model be changed inside the block; afterwards it is what it was."""
        try:
            yield
        finally:
            self.snapshot.restore_(self.loaded.model)

    def session(self, request: Request) -> Session:
        """The session of a request on the model, which has to be dense.

        Raises:
            RequestError: too little text, blocks that cannot be walked one by one, or that hold little in
                linears.
        """
        recipe = request.recipe
        calibration = self.calibration(request)
        structure = self.structure
        if calibration is not None:
            if self._settled is None:
                self._settled = settled_structure(
                    self.loaded.model, structure, calibration.ids, request.device
                )
            structure = self._settled
        check_covered(coverage_of(structure), partial=recipe.partial)
        damage_text = None
        if request.measures_damage:
            damage_text = self.texts.calibration(damage_text_options(recipe))
        return Session(
            request,
            self.loaded,
            structure,
            self.identity,
            calibration,
            self.progress,
            tasks=self.texts.tasks(recipe),
            damage_text=damage_text,
            announce=self.announce,
        )

    def dense_session(self, request: Request) -> Session:
        """A session in which the model stays as it is: of the request only the evaluation counts.

        Raises:
            RequestError: what a task is refused for.
        """
        return Session(
            request,
            self.loaded,
            self.structure,
            self.identity,
            None,
            self.progress,
            tasks=self.texts.tasks(request.recipe),
        )

    def calibration(self, request: Request) -> TokenWindows | None:
        """The calibration windows of a request; None if neither allocator nor backend looks at text.

        Raises:
            RequestError: too little text.
        """
        if not looks_at_text(request):
            return None
        options = calibration_options(request.recipe)
        if options not in self._calibration:
            text = self.texts.calibration(options)
            self._calibration[options] = calibration_windows(
                self.loaded, self.structure, options, text, self.progress
            )
        return self._calibration[options]

    def evaluation(self, options: EvaluationOptions) -> TokenWindows:
        """The windows of an evaluation text.

        Raises:
            RequestError: too little text.
        """
        if options not in self._evaluation:
            text = self.texts.evaluation(options)
            self._evaluation[options] = held_out_windows(
                self.loaded, self.structure, options, text, self.progress
            )
        return self._evaluation[options]

    def predictions(self, options: EvaluationOptions, request: Request) -> DensePredictions:
        """What the model, which has to be dense, predicts on a text; of the last one that is kept.

        Raises:
            RequestError: too little text, or predictions that cannot be held against others.
        """
        if options not in self._predictions:
            self._predictions.clear()  # hidden states of a whole text
            self._predictions[options] = dense_predictions(
                self.loaded.model,
                self.evaluation(options),
                name=self.loaded.source,
                batch_size=request.recipe.batch_size,
                device=request.device,
                progress=self.progress,
            )
        return self._predictions[options]

    def name_of(self, *content: object) -> str:
        """A short name for a file of something that was measured on this model with all of `content`."""
        whole = "\n".join([self.key, self.identity.dtype, *map(str, content)])
        return hashlib.sha256(whole.encode()).hexdigest()[:16]
