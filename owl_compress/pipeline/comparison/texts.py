"""Texts, tasks and checkpoints that cells name, each read once, and what tells it from another."""

import hashlib
from dataclasses import dataclass, field, replace

from owl_compress.checkpoints.identity import checkpoint_key
from owl_compress.consent import NO_CONSENT, Consent
from owl_compress.data.text import Chats, Text
from owl_compress.data.windows import CalibrationOptions, EvaluationOptions, read_texts
from owl_compress.documents.recipe import Recipe
from owl_compress.evaluation.tasks import TaskOptions, Tasks
from owl_compress.pipeline.scoring import tasks_of

AnyText = Text | Chats


@dataclass
class Texts:
    """What was read so far; a text is kept for as long as cells may want it."""

    consent: Consent = NO_CONSENT
    _texts: dict[tuple[object, ...], AnyText] = field(default_factory=dict)
    _digests: dict[int, str] = field(default_factory=dict)
    _models: dict[tuple[str, str | None], str] = field(default_factory=dict)
    _tasks: dict[TaskOptions, Tasks] = field(default_factory=dict)

    def calibration(self, options: CalibrationOptions) -> AnyText:
        """The text of calibration options.

        Raises:
            RequestError: see `read_texts`.
        """
        return self._read("calibration", options, None)

    def evaluation(self, options: EvaluationOptions) -> AnyText:
        """The text of evaluation options.

        Raises:
            RequestError: see `read_texts`.
        """
        return self._read("evaluation", None, options)

    def _read(
        self, purpose: str, calibration: CalibrationOptions | None, evaluation: EvaluationOptions | None
    ) -> AnyText:
        options = calibration or evaluation
        if options is None:
            raise TypeError("options of calibration or of evaluation")
        key = (purpose, options.source, options.text_field, options.chat_template)
        if key not in self._texts:
            found = next(text for text in read_texts(calibration, evaluation) if text is not None)
            self._texts[key] = found
        return self._texts[key]

    def digest(self, text: AnyText) -> str:
        """sha256 of everything that a text says."""
        if id(text) not in self._digests:
            whole = hashlib.sha256()
            if isinstance(text, Text):
                whole.update(f"{text.separator!r} {text.by_document}".encode())
                for document in text.documents:
                    whole.update(f" {len(document)} ".encode())
                    whole.update(document.encode())
            else:
                whole.update(repr(text.conversations).encode())
            self._digests[id(text)] = whole.hexdigest()
        return self._digests[id(text)]

    def tasks(self, recipe: Recipe) -> Tasks | None:
        """The tasks of a recipe, with their samples; None where it names none.

        Raises:
            RequestError: see `Tasks.of`.
        """
        asked = tasks_of(recipe)
        if asked is None:
            return None
        key = replace(asked, seed=0, batch_size=1)
        if key not in self._tasks:
            self._tasks[key] = Tasks.of(asked)
        return replace(self._tasks[key], options=asked)

    def model(self, recipe: Recipe) -> str:
        """What tells the checkpoint of a recipe from others.

        Raises:
            RequestError: see `checkpoint_key`.
        """
        key = (recipe.model, recipe.revision)
        if key not in self._models:
            self._models[key] = checkpoint_key(
                recipe.model, revision=recipe.revision, allow_pickle=self.consent.allow_pickle
            )
        return self._models[key]
