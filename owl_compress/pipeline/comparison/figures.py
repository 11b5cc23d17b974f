"""What is measured of the model of a cell as it is: perplexity, agreement, tasks, size, time."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from owl_compress.data.windows import TokenWindows
from owl_compress.documents.accuracy import TaskAccuracy
from owl_compress.documents.measurements import AgreementRecord, LatencyRecord, PerplexityRecord
from owl_compress.evaluation.agreement import evaluate_against
from owl_compress.evaluation.latency import compare as time_models
from owl_compress.evaluation.perplexity import perplexity
from owl_compress.evaluation.predictions import DensePredictions
from owl_compress.models.state import n_parameters
from owl_compress.pipeline.comparison.bench import Bench
from owl_compress.pipeline.comparison.fingerprints import evaluated
from owl_compress.pipeline.comparison.measures import Measures
from owl_compress.pipeline.execution import score
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.stored import stored_size


@dataclass
class Account:
    """Seconds by stage, and the token ids that were looked at, by what they were for."""

    seconds: dict[str, float] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time of the block."""
        start = perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + perf_counter() - start

    def looked_at(self, what: str, windows: TokenWindows | None) -> None:
        """Note the windows, if there are any."""
        if windows is not None:
            self.texts[what] = windows.record.token_ids_sha256


@dataclass(frozen=True)
class Figures:
    """Measures the model of `bench`, be it dense or compressed."""

    bench: Bench
    measures: Measures

    def predictions(self, session: Session, account: Account) -> DensePredictions | None:
        """What the model, still dense, predicts on the first text; None where agreement is not asked for.

        Raises:
            RequestError: see `Bench.predictions`.
        """
        texts = evaluated(session.recipe, self.measures)
        if not session.recipe.agreement or not texts:
            return None
        with account.timed("evaluate"):
            return self.bench.predictions(texts[0][1], session.request)

    def of(self, session: Session, account: Account, dense: DensePredictions | None = None) -> dict[str, Any]:
        """What a row says of the model as it is now; how nearly it predicts what the `dense` one does.

        Raises:
            RequestError: predictions that are no numbers, or what a task is refused for.
        """
        model = session.loaded.model
        size = stored_size(session)
        found: dict[str, PerplexityRecord] = {}
        agreement: AgreementRecord | None = None
        with account.timed("evaluate"):
            for name, options in evaluated(session.recipe, self.measures):
                windows = self.bench.evaluation(options)
                account.looked_at(f"data {name}", windows)
                if dense is not None and not found:
                    found[name], agreement = evaluate_against(model, dense, **self._how(session))
                else:
                    found[name] = perplexity(model, windows, **self._how(session))
        return {
            "perplexity": found,
            "agreement": agreement,
            "tasks": self._accuracy(session, account),
            "latency": self._latency(session, account),
            "bytes_on_disk": size.bytes_on_disk,
            "bits_per_weight": size.bits_per_weight,
            "n_params": n_parameters(model),
        }

    def _accuracy(self, session: Session, account: Account) -> dict[str, TaskAccuracy]:
        if session.tasks is None:
            return {}
        with account.timed("tasks"):
            return score(session)

    def _latency(self, session: Session, account: Account) -> LatencyRecord | None:
        shape = self.measures.latency
        if shape is None:
            return None
        with account.timed("timing"):
            (record,) = time_models(
                {session.recipe.model: session.loaded.model},
                shape,
                session.request.device,
                self.bench.progress,
            )
        return record

    def _how(self, session: Session) -> dict[str, Any]:
        return {
            "batch_size": session.recipe.batch_size,
            "device": session.request.device,
            "progress": self.bench.progress,
        }
