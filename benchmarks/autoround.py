"""Does tuned rounding beat gptq with the same bits, and is the backend as good as AutoRound by itself?

    python benchmarks/autoround.py --calib validation.txt --data test.txt [--iters 200] [--step-windows 8]
        [--only "3 autoround,3 alone"] > rows.jsonl

One row for each budget and method. The texts are WikiText-2 validation and test: calibration on the first 12
windows of 512 tokens, perplexity on the first 20 of the other, float32, groups of 64. Mixed widths are OWL's,
the same plan for both backends. *alone* is AutoRound's own interface, given the same token ids, steps and
seed, and evaluated as it leaves the model in memory.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

from auto_round import AutoRound
from cases import SEQ_LEN
from rows import print_row

from owl_compress import Recipe, Session, load, make_plan, perplexity
from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.compression.other_packages import only_new_garbage_collected, silenced
from owl_compress.data.text import load_text
from owl_compress.data.windows import TokenWindows, evaluation_windows, sample_windows
from owl_compress.pipeline.execution import compress_

_CALIBRATION, _EVALUATION = 12, 20
_GROUP_SIZE = 64
_OWL = {"allocator": "owl", "metric": "lod@10", "lam": 0.5}
_BUDGETS: Mapping[str, Mapping[str, Any]] = {
    "3": {"bits": 3.0, "bit_choices": "3", "allocator": "uniform"},
    "2.5": {"bits": 2.5, "bit_choices": "2,3,4", **_OWL},
    "3.5": {"bits": 3.5, "bit_choices": "3,4", **_OWL},
    "4": {"bits": 4.0, "bit_choices": "4", "allocator": "uniform"},
}


@dataclass(frozen=True)
class Bench:
    """The model, the windows of each purpose, and how AutoRound is set."""

    loaded: LoadedModel
    calibration: TokenWindows
    evaluation: TokenWindows
    tuning: Mapping[str, int]
    seed: int

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Bench":
        """As the command has it."""
        loaded = load("builtin")
        calib = load_text(arguments.calib, purpose="calibration")
        data = load_text(arguments.data, purpose="evaluation")
        return cls(
            loaded,
            sample_windows(
                loaded.tokenizer,
                calib,
                samples=_CALIBRATION,
                seq_len=SEQ_LEN,
                sampling="first",
                seed=0,
                bos="first",
            ),
            evaluation_windows(loaded.tokenizer, data, seq_len=SEQ_LEN, bos="first", max_windows=_EVALUATION),
            {"iters": arguments.iters, "step_windows": arguments.step_windows},
            arguments.seed,
        )

    def by_backend(self, backend: str, budget: Mapping[str, Any]) -> dict[str, Any]:
        """What a backend makes of the plan for `budget`."""
        given = {
            "model": "builtin",
            "calib": "builtin",
            "backend": backend,
            "group_size": _GROUP_SIZE,
            **budget,
        }
        given |= {"seed": self.seed, **self.tuning} if backend == "autoround" else {}
        session = Session.open(Recipe.from_options(given), self.loaded, self.calibration).on_a_copy()
        _, plan = make_plan(session)
        with TemporaryDirectory() as folder:
            result = compress_(session, plan, Path(folder) if backend == "autoround" else None)
        return {
            "perplexity": perplexity(session.loaded.model, self.evaluation).perplexity,
            "achieved": result.totals.achieved,
            "plan": plan.fingerprint[:16],
        }

    def alone(self, budget: Mapping[str, Any]) -> dict[str, Any]:
        """What AutoRound makes of the same windows at the same bits for every linear."""
        recipe = Recipe.from_options({"model": "builtin", "calib": "builtin", "backend": "rtn", **budget})
        model = Session.open(recipe, self.loaded, self.calibration).on_a_copy().loaded.model
        with silenced(), only_new_garbage_collected():
            tuned, _ = AutoRound(
                model, self.loaded.tokenizer, bits=int(budget["bits"]), group_size=_GROUP_SIZE, sym=True,
                dataset=[row[None] for row in self.calibration.ids], nsamples=_CALIBRATION, seqlen=SEQ_LEN,
                iters=self.tuning["iters"], batch_size=self.tuning["step_windows"], seed=self.seed,
                device_map="cpu", amp=False, low_cpu_mem_usage=False,
            ).quantize()  # fmt: skip
        return {"perplexity": perplexity(tuned, self.evaluation).perplexity, "achieved": budget["bits"]}


def main() -> None:
    """Every budget by every method, or those that are asked for, in the order in which they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--iters", type=int, default=200)
    parser.add_argument("--step-windows", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="names of rows, by comma")
    arguments = parser.parse_args()
    bench = Bench.of(arguments)
    measures = _measures(bench)
    for name in arguments.only.split(",") if arguments.only else measures:
        start, spent = perf_counter(), process_time()
        measured = measures[name]()
        cost = {"seconds": perf_counter() - start, "cpu_seconds": process_time() - spent}
        is_tuned = not name.endswith("gptq")
        tuning = {**bench.tuning, "auto_round": version("auto-round")} if is_tuned else {}
        print_row("autoround", name=name, seed=arguments.seed, **measured, **tuning, **cost)


def _measures(bench: Bench) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is measured, by the name of its row."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for name, budget in _BUDGETS.items():
        for backend in ("autoround", "gptq"):
            found[f"{name} {backend}"] = lambda backend=backend, budget=budget: bench.by_backend(
                backend, budget
            )
    found["3 alone"] = lambda: bench.alone(_BUDGETS["3"])
    return found


if __name__ == "__main__":
    main()
