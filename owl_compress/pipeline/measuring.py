"""The first stage by itself: a model and a text, to a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.consent import NO_CONSENT, Consent
from owl_compress.data.windows import CalibrationOptions, TokenWindows, check_batch_size, read_texts
from owl_compress.device import resolve_device
from owl_compress.documents.provenance import ModelIdentity
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.recipe_fields import ActivationsName
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.versions import versions
from owl_compress.importance.estimator import measure_with_statistics
from owl_compress.importance.metrics import with_defaults
from owl_compress.memory import memory_errors
from owl_compress.models.structure import find_structure
from owl_compress.pipeline.facts import facts
from owl_compress.pipeline.stages import (
    check_there,
    identity_of,
    load,
)
from owl_compress.pipeline.unfinished import NOTHING_KEPT, Keeping, check_finished
from owl_compress.pipeline.windows import calibration_windows
from owl_compress.progress import SILENT, Progress, shown

LOADING = ("dtype", "revision", "offload")
"""Options of a recipe that say how its model is loaded."""

_CALIBRATION = ("samples", "seq_len", "sampling", "seed", "bos", "text_field", "chat_template")


@dataclass(frozen=True)
class Measurement:
    """What is to be measured, checked before the model is loaded.

    Attributes:
        model: as for `owl_compress.load`.
        calibration: the windows to measure on.
        metrics: the default ones, and further ones.
        device: where blocks are run.
        batch_size: sequences per forward pass.
        partial: measure a model of which less than half of the weights in the blocks can be measured.
        loading: options of `owl_compress.load`.
        activations: where hidden states wait between blocks.
    """

    model: str
    calibration: CalibrationOptions
    metrics: tuple[str, ...]
    device: torch.device
    batch_size: int
    partial: bool
    loading: Mapping[str, Any]
    activations: ActivationsName = "auto"

    @classmethod
    def of(
        cls,
        model: str,
        given: Mapping[str, Any],
        metrics: Sequence[str] = (),
        consent: Consent = NO_CONSENT,
    ) -> "Measurement":
        """The measurement that options ask for, under their names in a recipe.

        Raises:
            RequestError: an unknown metric or device, or a number that cannot be meant.
        """
        fields = Recipe.model_fields
        batch_size = given.get("batch_size", fields["batch_size"].default)
        check_batch_size(batch_size)
        return cls(
            model,
            CalibrationOptions(given.get("calib", fields["calib"].default), **taken(given, _CALIBRATION)),
            with_defaults(metrics),
            resolve_device(given.get("device", fields["device"].default)),
            batch_size,
            given.get("partial", fields["partial"].default),
            {**taken(given, LOADING), **consent.as_options},
            given.get("activations", fields["activations"].default),
        )

    def run(self, progress: Progress = SILENT, keeping: Keeping = NOTHING_KEPT) -> ImportanceReport:
        """Load the model and measure it, as far as that is not done: what is, is kept by `keeping`.

        Raises:
            RequestError: see `owl_compress.load`, `calibrate` and `measure`; or what is kept, or finished, is
                of something else.
        """
        with memory_errors("measuring"):
            # What is wrong with names and texts is told before the model is loaded.
            check_there(self.model, **self.loading)
            text, _ = read_texts(self.calibration)
            loading = partial(load, self.model, device=self.device, **self.loading)
            loaded = shown(progress, "loading", loading)
            structure = find_structure(loaded.model)
            windows = calibration_windows(loaded, structure, self.calibration, text, progress)
            identity = identity_of(loaded, structure)
            if keeping.is_finished:
                return self._finished(keeping.out, identity, windows)
            return measure_with_statistics(
                loaded.model,
                windows,
                metrics=self.metrics,
                device=self.device,
                batch_size=self.batch_size,
                partial=self.partial,
                structure=structure,
                identity=identity,
                progress=progress,
                activations=self.activations,
                notes=keeping.notes(lambda: self._depends_on(loaded, windows)),
            ).report

    def _depends_on(self, loaded: LoadedModel, windows: TokenWindows) -> dict[str, str]:
        settings = {"metric": ",".join(self.metrics), "batch-size": self.batch_size}
        return facts(loaded, settings, self.device, {"calibration": windows})

    def _finished(self, out: Path, identity: ModelIdentity, windows: TokenWindows) -> ImportanceReport:
        """The report that is there, if it is of this very measurement.

        Raises:
            RequestError: naming what differs.
        """
        done = ImportanceReport.read(out)
        check_finished(
            out,
            {
                "the model": (done.model, identity),
                "the calibration text": (done.provenance.calibration, windows.record),
                "--metric": ([*done.blocks[0].metrics], [*self.metrics]),
                **{
                    f"version of {name}": (done.provenance.versions.get(name), version)
                    for name, version in versions().items()
                },
            },
        )
        return done


def taken(given: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Those of the options that are called so."""
    return {name: given[name] for name in names if name in given}
