"""Are mixed N:M and mixed bits better than uniform at an equal budget? One row per budget and allocator.

    python benchmarks/grids.py --calib validation.txt --data test.txt [--only 3:8] > rows.jsonl

Protocol: the embedded model in float32; calibration and measuring on the first 12 windows of 512 tokens of
the calibration text; OWL's metric and lam chosen by the perplexity on windows 13 to 20 of that same text,
which nothing else sees; evaluation on the first 20 windows of 512 of the other text. The row of a tuned
allocator says what was chosen from what. For gptq the choice is made with rtn, which costs a tenth.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from rows import print_row

from owl_compress import Line, Recipe, measure
from owl_compress.allocators import allocate
from owl_compress.calibration import TokenWindows, evaluation_windows, token_ids_sha256
from owl_compress.estimator import outline
from owl_compress.loading import LoadedModel
from owl_compress.pipeline.line import metrics_of
from owl_compress.pipeline.request import allocator_of, target_of
from owl_compress.report import ImportanceReport
from owl_compress.text import load_text

_SEQ_LEN, _CALIBRATION, _TUNING, _EVALUATION = 512, 12, 8, 20
_METRICS = ("lod@5", "lod@10")
_LAMS = {"nm": (1.0, 2.0), "bits": (0.5, 1.0)}


@dataclass(frozen=True)
class Case:
    """One row: a budget, a backend, and an allocator with its options; `tuned` options are chosen."""

    budget: dict[str, Any]
    backend: str
    allocator: str
    options: dict[str, Any]
    tuned: bool = False

    @property
    def name(self) -> str:
        """For the row."""
        amount = ", ".join(str(value) for value in self.budget.values())
        extra = "".join(f" {key}={value}" for key, value in self.options.items())
        return f"{self.backend} {amount} {self.allocator}{extra}"


def cases() -> Iterator[Case]:
    """The table of README.md."""
    for nm in ("4:8", "3:8", "2:8"):
        for allocator in ("uniform", "linear-depth", "random"):
            yield Case({"nm": nm}, "wanda", allocator, {})
        yield Case({"nm": nm}, "wanda", "owl", {}, tuned=True)
    for bits, choices, has_uniform in ((3.5, "3,4", False), (3.0, "2,3,4", True), (3.0, "2,4", False)):
        budget = {"bits": bits, "bit_choices": choices}
        for backend in ("rtn", "gptq"):
            if has_uniform:
                yield Case(budget, backend, "uniform", {})
            for seed in range(3):
                yield Case(budget, backend, "random", {"seed": seed})
            yield Case(budget, backend, "weight-l1", {})
            yield Case(budget, backend, "owl", {}, tuned=True)
            yield Case(budget, backend, "owl", {"solver": "optimal"}, tuned=True)
    for bits, backend in product((4, 3, 2), ("rtn", "gptq")):
        yield Case({"bits": bits, "bit_choices": str(bits)}, backend, "uniform", {})


@dataclass(frozen=True)
class Bench:
    """The model, its dense weights, its report, and the windows of each purpose."""

    loaded: LoadedModel
    dense: dict[str, Any]
    report: ImportanceReport
    calibration: TokenWindows
    tuning: TokenWindows
    evaluation: TokenWindows

    def perplexity(self, case: Case, windows: TokenWindows) -> tuple[float, dict[str, float]]:
        """Compress the dense model as the case says, and evaluate it; the model is dense again afterwards."""
        line = Line(_recipe(case))
        report = self.report if allocator_of(line.recipe).reads_scores else outline(self.loaded.model)
        plan = allocate(report, allocator_of(line.recipe), target_of(line.recipe))
        result = line.compress_(self.loaded, plan, self.calibration)
        perplexity = line.evaluate(self.loaded, windows).perplexity
        self.loaded.model.load_state_dict(self.dense)
        return perplexity, {"asked": result.totals.asked, "achieved": result.totals.achieved}

    def tune(self, case: Case) -> tuple[Case, list[dict[str, Any]]]:
        """The case with the metric and lam that are best on the tuning windows, and all that were tried."""
        tried_with = "rtn" if "bits" in case.budget else case.backend
        lams = (None,) if "solver" in case.options else _LAMS["nm" if "nm" in case.budget else "bits"]
        tried = []
        for metric, lam in product(_METRICS, lams):
            options = {"metric": metric} | ({} if lam is None else {"lam": lam})
            candidate = replace(case, backend=tried_with, options=case.options | options)
            tried.append({**options, "tuning_perplexity": self.perplexity(candidate, self.tuning)[0]})
        best = min(tried, key=lambda one: one["tuning_perplexity"])
        chosen = {key: value for key, value in best.items() if key != "tuning_perplexity"}
        return replace(case, options=case.options | chosen), tried


def main() -> None:
    """Run the cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    arguments = parser.parse_args()
    bench = _bench(arguments.calib, arguments.data)
    for case in cases():
        if arguments.only not in case.name:
            continue
        chosen, tried = bench.tune(case) if case.tuned else (case, [])
        perplexity, counted = bench.perplexity(chosen, bench.evaluation)
        print_row(
            "grids", name=case.name, perplexity=perplexity, options=chosen.options, tried=tried, **counted
        )


def _bench(calib: str, data: str) -> Bench:
    loaded = Line(_recipe(next(cases()))).load()

    def windows(source: str, part: Any, count: int) -> TokenWindows:
        text = load_text(source, part=part)
        return evaluation_windows(loaded.tokenizer, text, seq_len=_SEQ_LEN, bos="first", max_windows=count)

    both = windows(calib, "calibration", _CALIBRATION + _TUNING)
    calibration = both.first(_CALIBRATION)
    metrics = metrics_of(allocator_of(_recipe(next(case for case in cases() if case.tuned))))
    return Bench(
        loaded,
        {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()},
        measure(loaded.model, calibration, metrics=metrics),
        calibration,
        _after(both, _CALIBRATION),
        windows(data, "evaluation", _EVALUATION),
    )


def _after(windows: TokenWindows, start: int) -> TokenWindows:
    ids = windows.ids[start:]
    changed = {"sequences": len(ids), "token_ids_sha256": token_ids_sha256(ids)}
    return TokenWindows(ids, windows.record.model_copy(update=changed))


def _recipe(case: Case) -> Recipe:
    quantizes = {"group_size": 64} if "bits" in case.budget else {}
    return Recipe.from_options(
        {
            "model": "builtin",
            "allocator": case.allocator,
            "backend": case.backend,
            "calib": "builtin",  # not read: the windows are given
            **quantizes,
            **case.budget,
            **case.options,
        }
    )


if __name__ == "__main__":
    main()
