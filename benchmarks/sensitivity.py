"""Are budgets from measured damage better than others? One row per target, allocator and calibration seed.

    python benchmarks/sensitivity.py --calib validation.txt --data test.txt --profiles FOLDER [--only wanda]
        [--seed 1] [--methods uniform,sensitivity] > rows.jsonl

The texts are WikiText-2 validation and test. Seed 0 is the protocol of the other benchmarks: statistics on
the first 12 windows of 512 tokens; another seed draws 12 windows at random. Damage is measured on windows of
128 tokens held apart from these, evaluation is on the first 20 windows of 512 of the other text, float32.
Profiles are kept in FOLDER and found there again, and so is what a search that was stopped has done: the same
command goes on with it.
"""

import argparse
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from cases import SEQ_LEN
from rows import print_row

from owl_compress import Recipe, Session, load, make_plan, perplexity, refine
from owl_compress.allocators import allocate
from owl_compress.backends import BACKENDS
from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.data.apart import windows_apart
from owl_compress.data.text import Text, load_text
from owl_compress.data.windows import TokenWindows, evaluation_windows, sample_windows
from owl_compress.documents.notes import NotesIn
from owl_compress.documents.plan import Plan
from owl_compress.documents.sensitivity import Measure, PartKind, SensitivityProfile
from owl_compress.documents.units import KeptOfGrid
from owl_compress.importance.profile import ProfileOptions, profile
from owl_compress.importance.reference import DEFAULT_POSITIONS, DenseReference
from owl_compress.models.structure import find_structure
from owl_compress.pipeline.execution import compress_
from owl_compress.pipeline.refining import DamageText, RefinementOptions
from owl_compress.pipeline.stages import identity_of
from owl_compress.refinement.refined import Method

_CALIBRATION, _EVALUATION = 12, 20
_DAMAGE_LEN = 128
_FROM_DAMAGE = ("sensitivity", "refine")
_COSTS = {"refine": 1, "evo": 10}
"""What is spent on a search, in profiles of the same parts."""


@dataclass(frozen=True)
class Subject:
    """A backend with its options, what is profiled of it, and the targets that one profile serves."""

    name: str
    backend: str
    targets: tuple[Mapping[str, Any], ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    grid: KeptOfGrid | None = None
    levels: tuple[float, ...] | None = None
    part: PartKind | None = None


_NM = KeptOfGrid(kept_of=8)
SUBJECTS = (
    Subject("wanda", "wanda", tuple({"sparsity": s} for s in (0.5, 0.6, 0.7))),
    Subject("wanda N:M", "wanda", tuple({"nm": nm} for nm in ("4:8", "3:8", "2:8")), grid=_NM),
    Subject("sparsegpt", "sparsegpt", tuple({"sparsity": s} for s in (0.6, 0.7))),
    Subject(
        "gptq",
        "gptq",
        (
            {"bits": 3.0, "bit_choices": "2,3,4"},
            {"bits": 3.5, "bit_choices": "3,4"},
            {"bits": 2.5, "bit_choices": "2,3,4"},
        ),
        {"group_size": 64},
        levels=(2, 3, 4),
    ),
    Subject("rtn", "rtn", ({"bits": 3.5, "bit_choices": "3,4"},), {"group_size": 64}, levels=(3, 4)),
    Subject("structured", "structured", tuple({"prune_ratio": r} for r in (0.2, 0.4, 0.6)), {"repair": True}),
    Subject("wanda by linear", "wanda", tuple({"sparsity": s} for s in (0.6, 0.7)), part=PartKind.LINEAR),
)


TUNED_OWL: dict[str, dict[str, Any]] = {
    "wanda": {"metric": "lod@10", "lam": 0.08},
    "sparsegpt": {"metric": "lod@10", "lam": 0.08},
    "wanda N:M 4:8": {"metric": "lod@7", "lam": 1.0},
    "wanda N:M 3:8": {"metric": "lod@5", "lam": 2.0},
    "wanda N:M 2:8": {"metric": "lod@3", "lam": 0.5},
    "gptq": {"metric": "lod@5", "lam": 0.5},
    "gptq 3.5, 3,4": {"metric": "lod@10", "lam": 0.5},
    "rtn": {"metric": "lod@10", "lam": 0.5},
    "structured 0.2": {"metric": "lod@5", "lam": 0.08, "high": 1.0},
    "structured 0.4": {"metric": "lod@5", "lam": 0.03, "high": 1.0},
    "structured 0.6": {"metric": "lod@10", "lam": 0.03, "high": 1.0},
}
"""What was chosen for a target, or else for a subject, on text that is not evaluated on (see `grids/`)."""


@dataclass(frozen=True)
class Texts:
    """The windows of each purpose."""

    calibration: TokenWindows
    damage: TokenWindows
    evaluation: TokenWindows
    dense: DenseReference
    calibration_text: Text

    @classmethod
    def of(cls, loaded: LoadedModel, arguments: argparse.Namespace) -> "Texts":
        """Cut out of the texts as the seed has it."""
        calib: Text = load_text(arguments.calib, purpose="calibration")  # type: ignore[assignment]
        data = load_text(arguments.data, purpose="evaluation")
        shape = {"samples": _CALIBRATION, "seq_len": SEQ_LEN, "bos": "first", "seed": arguments.seed}
        sampling = "random" if arguments.seed else "first"
        calibration = sample_windows(loaded.tokenizer, calib, sampling=sampling, **shape)
        damage = windows_apart(
            loaded.tokenizer,
            calib,
            [calibration],
            samples=arguments.damage_samples,
            seq_len=_DAMAGE_LEN,
            seed=arguments.seed,
            bos="first",
        )
        evaluation = evaluation_windows(
            loaded.tokenizer, data, seq_len=SEQ_LEN, bos="first", max_windows=_EVALUATION
        )
        structure = find_structure(loaded.model)
        cpu, positions = torch.device("cpu"), arguments.positions
        dense = DenseReference.of(loaded.model, structure, damage, cpu, n_positions=positions)
        return cls(calibration, damage, evaluation, dense, calib)


def main() -> None:
    """Profile each subject once, and try all its targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--profiles", type=Path, required=True, help="folder for profiles")
    parser.add_argument("--only", default="", help="only this subject")
    parser.add_argument("--target", default="", help="only targets that contain this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--damage-samples", type=int, default=4)
    parser.add_argument("--positions", type=int, default=DEFAULT_POSITIONS)
    parser.add_argument("--methods", default="sensitivity", help="allocators, refine or evo, by comma")
    arguments = parser.parse_args()
    loaded = load("builtin")
    texts = Texts.of(loaded, arguments)
    for subject in SUBJECTS:
        if arguments.only in {"", subject.name}:
            for row in _rows(loaded, texts, subject, arguments):
                print_row("sensitivity", seed=arguments.seed, **row)


def _rows(
    loaded: LoadedModel, texts: Texts, subject: Subject, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    methods = arguments.methods.split(",")
    is_profiled = not {*methods}.isdisjoint({*_FROM_DAMAGE, *_COSTS})
    found = _profile(loaded, texts, subject, arguments) if is_profiled else None
    for target in subject.targets:
        amount = ", ".join(map(str, target.values()))
        for method in methods:
            if arguments.target in amount:
                name = f"{subject.name} {amount}"
                asked = {**target, **_allocator_options(method, subject, name)}
                unfinished = profile_path(arguments, subject).with_suffix("") / f"{amount} {method}"
                measured = _try(loaded, texts, subject, asked, method, found, unfinished)
                yield {"name": f"{name} {method}", **measured}


def _allocator_options(method: str, subject: Subject, name: str) -> dict[str, Any]:
    """The allocator's name, and what it was tuned to."""
    if method in {*_FROM_DAMAGE, *_COSTS}:
        return {"allocator": "uniform"}
    tuned = TUNED_OWL.get(name, TUNED_OWL.get(subject.name, {})) if method == "owl" else {}
    return {"allocator": method, **tuned}


def _try(
    loaded: LoadedModel,
    texts: Texts,
    subject: Subject,
    asked: Mapping[str, Any],
    method: str,
    found: SensitivityProfile | None,
    unfinished: Path,
) -> dict[str, Any]:
    is_profiled = method in _FROM_DAMAGE and found is not None
    given = {"model": "builtin", "calib": "builtin", "statistics": "sequential", "backend": subject.backend}
    given |= subject.options
    recipe = Recipe.from_options({**given, **asked})
    copy = Session.open(recipe, loaded, texts.calibration).on_a_copy()
    plan = allocate(found, "sensitivity", copy.request.target) if is_profiled else make_plan(copy)[1]
    if method in _COSTS and found is not None:
        search: Method = "evo" if method == "evo" else "swaps"
        options = RefinementOptions(method=search, max_cost=_COSTS[method] * found.forward_tokens)
        plan = _refined(loaded, texts, given, plan, options, unfinished)
    result = compress_(copy, plan)
    damage = texts.dense.divergence_of(copy.loaded.model)
    return {
        "perplexity": perplexity(copy.loaded.model, texts.evaluation).perplexity,
        "asked": result.totals.asked,
        "achieved": result.totals.achieved,
        "seconds": result.wall_seconds,
        "damage": damage,
        "predicted_damage": plan.allocator.parameters.get("predicted_damage"),
        "profile": found.fingerprint[:16] if is_profiled else None,
    }


def _refined(
    loaded: LoadedModel,
    texts: Texts,
    given: Mapping[str, Any],
    plan: Plan,
    options: RefinementOptions,
    unfinished: Path,
) -> Plan:
    """The plan after swaps, or evolved; the folder `unfinished` holds what is done so far."""
    notes = NotesIn(unfinished, f"remove {unfinished}")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        plan.write(path)
        session = Session.open(Recipe.from_options({**given, "plan": str(path)}), loaded, texts.calibration)
        found = refine(session, options, DamageText(text=texts.calibration_text), lambda _: notes)
    shutil.rmtree(unfinished, ignore_errors=True)
    return found.plan


def profile_path(arguments: argparse.Namespace, subject: Subject) -> Path:
    """Where the profile of a subject is kept."""
    name = subject.name.replace(" ", "-").replace(":", "")
    found: Path = arguments.profiles / f"{name}-{arguments.seed}.json"
    return found


def _profile(
    loaded: LoadedModel, texts: Texts, subject: Subject, arguments: argparse.Namespace
) -> SensitivityProfile:
    """The profile in the folder, or one that is measured now, for a row of its own."""
    path = profile_path(arguments, subject)
    if path.is_file():
        return SensitivityProfile.read(path)
    start = perf_counter()
    options = ProfileOptions(
        part=subject.part,
        levels=subject.levels,
        grid=subject.grid,
        measure=Measure.KL,
        positions=arguments.positions,
    )
    backend = BACKENDS.create(subject.backend, subject.options)
    found = profile(
        loaded.model, backend, texts.calibration, texts.damage, options, identity=identity_of(loaded)
    )
    found.write(path)
    print_row(
        "sensitivity",
        seed=arguments.seed,
        name=f"{subject.name} profile",
        seconds=perf_counter() - start,
        forward_tokens=found.forward_tokens,
        profile=found.fingerprint[:16],
    )
    return found


if __name__ == "__main__":
    main()
