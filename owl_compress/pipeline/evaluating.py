"""The last stage by itself: what a model or a folder is worth, and how fast it runs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.consent import NO_CONSENT, Consent
from owl_compress.data.text import Chats, Text
from owl_compress.data.windows import EvaluationOptions, check_batch_size, read_texts
from owl_compress.device import resolve_device
from owl_compress.documents.accuracy import TaskAccuracy
from owl_compress.documents.costs import CostTable
from owl_compress.documents.measurements import AgreementRecord, LatencyRecord, PerplexityRecord
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.recipe_fields import ActivationsName
from owl_compress.errors import RequestError
from owl_compress.evaluation.agreement import evaluate_against
from owl_compress.evaluation.part_costs import measure_costs
from owl_compress.evaluation.perplexity import perplexity
from owl_compress.evaluation.predictions import evaluate_dense
from owl_compress.evaluation.tasks import TaskOptions, Tasks, accuracy
from owl_compress.models.limits import check_vocabulary
from owl_compress.models.structure import find_structure
from owl_compress.pipeline.beside import Beside, Say, check_same_vocabulary
from owl_compress.pipeline.measuring import LOADING, taken
from owl_compress.pipeline.scoring import task_options
from owl_compress.pipeline.stages import (
    check_there,
    identity_of,
    load,
)
from owl_compress.pipeline.timing import TimingOptions, prepare_timing
from owl_compress.pipeline.windows import held_out_windows
from owl_compress.progress import SILENT, Progress, shown
from owl_compress.walk.ranks import Ranks

DEFAULT_TEXT = "wikitext2"
"""What perplexity is measured on where nobody says, as in the published tables."""

_TEXT = ("seq_len", "bos", "max_windows", "text_field", "chat_template", "stride", "protocol")
_OF_A_TEXT = ("max_windows", "stride", "protocol")
"""Options that are about a text alone: whoever gives one wants it evaluated."""


@dataclass(frozen=True)
class Evaluated:
    """What was measured; `latency` is empty where nothing was timed, `tasks` where none is named.

    `dense` is the perplexity of the dense model on the same text, `agreement` how nearly it is predicted what
    that predicts.
    """

    perplexity: PerplexityRecord | None
    latency: list[LatencyRecord]
    costs: CostTable | None = None
    dense: PerplexityRecord | None = None
    agreement: AgreementRecord | None = None
    tasks: tuple[TaskAccuracy, ...] = ()


@dataclass(frozen=True)
class EvaluationRequest:
    """What is to be evaluated, checked before the model is loaded.

    Attributes:
        model: as for `owl_compress.load`.
        text: the windows to evaluate on; None for tasks alone.
        device: where the model runs.
        batch_size: sequences per forward pass.
        loading: options of `owl_compress.load`.
        timing: what is timed; None times nothing.
        cost_widths: shares of the units of every part to time besides all, for a cost table; None for none.
        against: the dense model to hold predictions against; None for none.
        tasks: what accuracy is measured on; None measures none.
        sample_log: file for what was asked and answered, sample by sample.
        activations: where hidden states wait between blocks.
    """

    model: str
    text: EvaluationOptions | None
    device: torch.device
    batch_size: int
    loading: Mapping[str, Any]
    timing: TimingOptions | None
    cost_widths: tuple[float, ...] | None = None
    against: Beside | None = None
    tasks: TaskOptions | None = None
    sample_log: Path | None = None
    activations: ActivationsName = "auto"

    @classmethod
    def of(
        cls,
        model: str,
        data: str | None,
        given: Mapping[str, Any],
        timing: TimingOptions | None = None,
        consent: Consent = NO_CONSENT,
        against: Beside | None = None,
    ) -> "EvaluationRequest":
        """The evaluation that options ask for, under their names in a recipe.

        Without `data` the text is `DEFAULT_TEXT`; where tasks are named and nothing is said of a text, it is
        none, and there is no perplexity.

        Raises:
            RequestError: an unknown device, a number that cannot be meant, or a model that cannot be timed
            so.
        """
        if timing:
            timing.check_model(model)
        if against:
            against.check(model)
        fields = Recipe.model_fields
        batch_size = given.get("batch_size", fields["batch_size"].default)
        check_batch_size(batch_size)
        tasks = task_options(given)
        if data is None and (tasks is None or against or taken(given, _OF_A_TEXT)):
            data = DEFAULT_TEXT
        return cls(
            model,
            None if data is None else EvaluationOptions(data, **taken(given, _TEXT)),
            resolve_device(given.get("device", fields["device"].default)),
            batch_size,
            {**taken(given, LOADING), **consent.as_options},
            timing,
            against=against,
            tasks=tasks,
            activations=given.get("activations", fields["activations"].default),
        )

    def without_unnamed_text(self, given: Mapping[str, Any]) -> "EvaluationRequest":
        """The same without the text that stands in for none, unless options are of it or need it."""
        return self if self.against or taken(given, _OF_A_TEXT) else replace(self, text=None)

    def of_process(self, ranks: Ranks) -> "EvaluationRequest":
        """The share of one of several processes: the one that leads writes.

        Raises:
            RequestError: something is timed, which they would disturb each other in.
        """
        if ranks.of > 1 and (self.timing or self.cost_widths is not None):
            raise RequestError("--latency times one process: start it without torchrun")
        return self if ranks.leads else replace(self, sample_log=None)

    def run(self, progress: Progress = SILENT, say: Say = lambda _: None) -> Evaluated:
        """Load the model, evaluate it beside the dense one, time it.

        Raises:
            RequestError: see `owl_compress.load`, `perplexity` and `prepare_timing`.
        """
        # What is wrong with names and texts is told before the model is loaded.
        check_there(self.model, **self.loading)
        _, text = read_texts(evaluation=self.text)
        tasks = Tasks.of(self.tasks, progress) if self.tasks else None
        loaded = shown(progress, "loading", partial(load, self.model, **self.loading))
        # What cannot be loaded beside it is told before the long evaluation.
        dense = self.against.load(loaded, say) if self.against else None
        timing = prepare_timing(loaded, self.timing, say, dense) if self.timing else None
        if dense is not None and not self._is_comparable(loaded, dense, say):
            dense = None
        before, after, agreed = self._evaluate(loaded, dense, text, progress)
        scored = self._score(loaded, tasks, progress) if tasks else ()
        latency = timing.run(progress) if timing else []
        return Evaluated(after, latency, self._costs(loaded, progress), before, agreed, scored)

    def _is_comparable(self, loaded: LoadedModel, dense: LoadedModel, say: Say) -> bool:
        """Whether the predictions of both are of the same tokens; where both are timed, that may do.

        Raises:
            RequestError: they are not, and nothing is timed.
        """
        try:
            check_same_vocabulary(loaded, dense)
        except RequestError as error:
            if self.timing is None:
                raise
            say(f"only timed beside {dense.source}: {error}")
            return False
        return True

    def _evaluate(
        self, loaded: LoadedModel, dense: LoadedModel | None, text: Text | Chats | None, progress: Progress
    ) -> tuple[PerplexityRecord | None, PerplexityRecord | None, AgreementRecord | None]:
        """Perplexity of the dense model, of the other, and what they agree on."""
        if self.text is None:
            return None, None, None
        windows = held_out_windows(loaded, find_structure(loaded.model), self.text, text, progress)
        how: dict[str, Any] = {"batch_size": self.batch_size, "device": self.device, "progress": progress}
        if dense is None:
            return None, perplexity(loaded.model, windows, activations=self.activations, **how), None
        check_vocabulary(dense.model, windows.ids)
        before, predictions = evaluate_dense(dense.model, windows, dense.source, **how)
        after, agreed = evaluate_against(loaded.model, predictions, **how)
        return before, after, agreed

    def _score(self, loaded: LoadedModel, tasks: Tasks, progress: Progress) -> tuple[TaskAccuracy, ...]:
        return accuracy(
            loaded.model,
            loaded.tokenizer,
            tasks,
            device=self.device,
            progress=progress,
            log=self.sample_log,
        )

    def _costs(self, loaded: LoadedModel, progress: Progress) -> CostTable | None:
        if self.cost_widths is None or self.timing is None:
            return None
        options, identity = self.timing, identity_of(loaded)
        return measure_costs(
            loaded.model, identity, options.shape, options.device, self.cost_widths, progress
        )
