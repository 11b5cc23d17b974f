"""The last stage by itself: what a model or a folder is worth, and how fast it runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.consent import NO_CONSENT, Consent
from owl_compress.data.windows import EvaluationOptions, check_batch_size, read_texts
from owl_compress.device import resolve_device
from owl_compress.documents.costs import CostTable
from owl_compress.documents.measurements import LatencyRecord, PerplexityRecord
from owl_compress.documents.recipe import Recipe
from owl_compress.evaluation.part_costs import measure_costs
from owl_compress.evaluation.perplexity import perplexity
from owl_compress.models.structure import find_structure
from owl_compress.pipeline.measuring import LOADING, taken
from owl_compress.pipeline.stages import check_there, held_out_windows, identity_of, load
from owl_compress.pipeline.timing import Say, TimingOptions, prepare_timing
from owl_compress.progress import SILENT, Progress, shown

_TEXT = ("seq_len", "bos", "max_windows", "text_field", "chat_template")


@dataclass(frozen=True)
class Evaluated:
    """What was measured; `latency` is empty where nothing was timed."""

    perplexity: PerplexityRecord
    latency: list[LatencyRecord]
    costs: CostTable | None = None


@dataclass(frozen=True)
class EvaluationRequest:
    """What is to be evaluated, checked before the model is loaded.

    Attributes:
        model: as for `owl_compress.load`.
        text: the windows to evaluate on.
        device: where the model runs.
        batch_size: sequences per forward pass.
        loading: options of `owl_compress.load`.
        timing: what is timed; None times nothing.
        cost_widths: shares of the units of every part to time besides all, for a cost table; None for none.
    """

    model: str
    text: EvaluationOptions
    device: torch.device
    batch_size: int
    loading: Mapping[str, Any]
    timing: TimingOptions | None
    cost_widths: tuple[float, ...] | None = None

    @classmethod
    def of(
        cls,
        model: str,
        data: str,
        given: Mapping[str, Any],
        timing: TimingOptions | None = None,
        consent: Consent = NO_CONSENT,
    ) -> "EvaluationRequest":
        """The evaluation that options ask for, under their names in a recipe.

        Raises:
            RequestError: an unknown device, a number that cannot be meant, or a model that cannot be timed
            so.
        """
        if timing:
            timing.check_model(model)
        fields = Recipe.model_fields
        batch_size = given.get("batch_size", fields["batch_size"].default)
        check_batch_size(batch_size)
        return cls(
            model,
            EvaluationOptions(data, **taken(given, _TEXT)),
            resolve_device(given.get("device", fields["device"].default)),
            batch_size,
            {**taken(given, LOADING), **consent.as_options},
            timing,
        )

    def run(self, progress: Progress = SILENT, say: Say = lambda _: None) -> Evaluated:
        """Load the model, evaluate it, time it.

        Raises:
            RequestError: see `owl_compress.load`, `perplexity` and `prepare_timing`.
        """
        # What is wrong with names and texts is told before the model is loaded.
        check_there(self.model, **self.loading)
        _, text = read_texts(evaluation=self.text)
        loaded = shown(progress, "loading", partial(load, self.model, **self.loading))
        # What cannot be loaded beside it is told before the long evaluation.
        timing = prepare_timing(loaded, self.timing, say) if self.timing else None
        windows = held_out_windows(loaded, find_structure(loaded.model), self.text, text, progress)
        found = perplexity(
            loaded.model, windows, batch_size=self.batch_size, device=self.device, progress=progress
        )
        latency = timing.run(progress) if timing else []
        return Evaluated(found, latency, self._costs(loaded, progress))

    def _costs(self, loaded: LoadedModel, progress: Progress) -> CostTable | None:
        if self.cost_widths is None or self.timing is None:
            return None
        options, identity = self.timing, identity_of(loaded)
        return measure_costs(
            loaded.model, identity, options.shape, options.device, self.cost_widths, progress
        )
