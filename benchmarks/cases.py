"""One case: the embedded model compressed one way and evaluated; and allocators tuned on calibration text.

Protocol: float32; calibration and measuring on the first 12 windows of 512 tokens of the calibration text;
OWL's metric and lam chosen by the perplexity on 16 windows spread evenly over the rest of that same text,
which nothing else sees; evaluation on the first 20 windows of 512 of the other text.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
from rows import print_row

from owl_compress import Recipe, Session, load, measure, try_out
from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.data.text import load_text
from owl_compress.data.windows import TokenWindows, evaluation_windows, token_ids_sha256
from owl_compress.documents.report import ImportanceReport
from owl_compress.pipeline.request import Request

SEQ_LEN = 512
_CALIBRATION, _TUNING, _EVALUATION = 12, 16, 20


@dataclass(frozen=True)
class Case:
    """A budget, a backend and an allocator, with the options of both under the names of a recipe.

    With `tuning` the allocator's options are chosen first, from all combinations of the values in it; with
    `tuned_as` that is done with these fields instead of the case's own, because it costs less.
    """

    budget: Mapping[str, Any]
    backend: str
    allocator: str
    options: Mapping[str, Any]
    tuning: Mapping[str, Sequence[Any]] | None = None
    tuned_as: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """For the row."""
        amount = ", ".join(str(value) for value in self.budget.values())
        extra = "".join(f" {key}={value}" for key, value in self.options.items())
        return f"{self.backend} {amount} {self.allocator}{extra}"

    @property
    def recipe(self) -> Recipe:
        """The same as a recipe; its texts are not read, since the windows are given."""
        return Recipe.from_options(
            {
                "model": "builtin",
                "calib": "builtin",
                "allocator": self.allocator,
                "backend": self.backend,
                **self.budget,
                **self.options,
            }
        )


@dataclass(frozen=True)
class Bench:
    """The dense model, its report, and the windows of each purpose."""

    loaded: LoadedModel
    report: ImportanceReport
    calibration: TokenWindows
    tuning: TokenWindows
    evaluation: TokenWindows
    tried: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def load(cls, calib: str, data: str, cases: Iterable[Case]) -> "Bench":
        """Load the embedded model, and measure what the allocators of `cases` rank by."""
        loaded = load("builtin")

        def windows(source: str, part: Any, count: int | None = None) -> TokenWindows:
            text = load_text(source, purpose=part)
            return evaluation_windows(loaded.tokenizer, text, seq_len=SEQ_LEN, bos="first", max_windows=count)

        metrics = dict.fromkeys(name for case in cases for name in Request.of(case.recipe).metrics)
        whole = windows(calib, "calibration")
        calibration = whole.first(_CALIBRATION)
        return cls(
            loaded,
            measure(loaded.model, calibration, metrics=tuple(metrics)),
            calibration,
            _spread(whole, _CALIBRATION, _TUNING),
            windows(data, "evaluation", _EVALUATION),
        )

    def perplexity(self, case: Case, windows: TokenWindows) -> tuple[float, dict[str, Any]]:
        """Compress a copy of the dense model as the case says, and evaluate it; with what was counted."""
        session = Session.open(case.recipe, self.loaded, self.calibration)
        trial = try_out(session, windows, self.report if session.measures else None)
        totals = trial.result.totals
        counted = {
            "asked": totals.asked,
            "achieved": totals.achieved,
            "n_params": totals.n_params_after,
            "seconds": trial.result.wall_seconds,
        }
        return trial.perplexity.perplexity, counted

    def tune(self, case: Case) -> tuple[Case, list[dict[str, Any]]]:
        """The case with the options that are best on the tuning windows, and all that were tried."""
        tuning = case.tuning or {}
        stand_in = replace(case, **(case.tuned_as or {}))
        if stand_in.name not in self.tried:
            self.tried[stand_in.name] = [
                self._try(stand_in, dict(zip(tuning, values, strict=True)))
                for values in product(*tuning.values())
            ]
        tried = self.tried[stand_in.name]
        best = min(tried, key=lambda one: one["tuning_perplexity"])
        return replace(case, options={**case.options, **{key: best[key] for key in tuning}}), tried

    def _try(self, case: Case, options: dict[str, Any]) -> dict[str, Any]:
        candidate = replace(case, options={**case.options, **options})
        return {**options, "tuning_perplexity": self.perplexity(candidate, self.tuning)[0]}


def run(benchmark: str, description: str | None, cases: Iterable[Case]) -> None:
    """Print one row for each case whose name the command line asks for."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    arguments = parser.parse_args()
    wanted = [case for case in cases if arguments.only in case.name]
    bench = Bench.load(arguments.calib, arguments.data, wanted)
    for case in wanted:
        chosen, tried = bench.tune(case) if case.tuning else (case, [])
        perplexity, counted = bench.perplexity(chosen, bench.evaluation)
        print_row(
            benchmark,
            name=case.name,
            perplexity=perplexity,
            options=chosen.options,
            tried=tried,
            **counted,
        )


def _spread(windows: TokenWindows, start: int, count: int) -> TokenWindows:
    """`count` windows at equal distances, from number `start` on: neighbours of one text are too alike."""
    ids = windows.ids[np.linspace(start, len(windows), count, endpoint=False, dtype=int)]
    changed = {"sequences": len(ids), "token_ids_sha256": token_ids_sha256(ids)}
    return TokenWindows(ids, windows.record.model_copy(update=changed))
