"""Is a tuned plan ever worse than equal shares on text that it has not seen? One row per target and seed.

    python benchmarks/tune.py --calib validation.txt --data test.txt [--profiles FOLDER] [--only wanda]
        [--target 0.7] [--seed 1] [--max-cost 100k] [--candidates owl] > rows.jsonl

The protocol of `sensitivity.py`: statistics on the first 12 windows of 512 tokens of the calibration text,
with another seed on 12 drawn at random; evaluation on the first 20 windows of 512 of the other text, float32.
Plans are tried on the same calibration windows and judged on windows held apart from these. Profiles are
those that `sensitivity.py` keeps in FOLDER; where there is none of a subject, none is used.

A row has the perplexity of the plan and of equal shares, and their ratio, which is promised to be no more
than 1.01.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

from cases import SEQ_LEN
from rows import print_row
from sensitivity import SUBJECTS, Subject, profile_path

from owl_compress import Recipe, Session, load, perplexity, tune
from owl_compress.allocators import allocate
from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.data.text import Text, load_text
from owl_compress.data.windows import TokenWindows, evaluation_windows, sample_windows
from owl_compress.documents.plan import Plan
from owl_compress.pipeline.execution import compress_
from owl_compress.pipeline.reports import outlined

_FURTHER = (Subject("rtn at 3", "rtn", ({"bits": 3.0, "bit_choices": "2,3,4"},), {"group_size": 64}),)
_CALIBRATION, _EVALUATION = 12, 20
_OF_TUNING = ("max_cost", "candidates")


def main() -> None:
    """Tune every target of the subjects, and evaluate the plan beside equal shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--profiles", type=Path, help="folder of profiles")
    parser.add_argument("--only", default="", help="only this subject")
    parser.add_argument("--target", default="", help="only targets that contain this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-cost")
    parser.add_argument("--candidates")
    arguments = parser.parse_args()
    loaded = load("builtin")
    calibration, evaluation = _windows(loaded, arguments)
    for subject in (*SUBJECTS, *_FURTHER):
        if arguments.only in {"", subject.name} and subject.part is None:
            for row in _rows(loaded, calibration, evaluation, subject, arguments):
                print_row("tune", seed=arguments.seed, **row)


def _windows(loaded: LoadedModel, arguments: argparse.Namespace) -> tuple[TokenWindows, TokenWindows]:
    calib: Text = load_text(arguments.calib, purpose="calibration")  # type: ignore[assignment]
    data = load_text(arguments.data, purpose="evaluation")
    calibration = sample_windows(
        loaded.tokenizer,
        calib,
        samples=_CALIBRATION,
        seq_len=SEQ_LEN,
        sampling="random" if arguments.seed else "first",
        seed=arguments.seed,
        bos="first",
    )
    evaluation = evaluation_windows(
        loaded.tokenizer, data, seq_len=SEQ_LEN, bos="first", max_windows=_EVALUATION
    )
    return calibration, evaluation


def _rows(
    loaded: LoadedModel,
    calibration: TokenWindows,
    evaluation: TokenWindows,
    subject: Subject,
    arguments: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """The targets of one subject."""
    for target in subject.targets:
        amount = ", ".join(map(str, target.values()))
        if arguments.target in amount:
            session = Session.open(_recipe(subject, target, arguments), loaded, calibration)
            yield {"name": f"{subject.name} {amount}", **_tuned(session, evaluation)}


def _recipe(subject: Subject, target: Mapping[str, Any], arguments: argparse.Namespace) -> Recipe:
    given = {name: value for name in _OF_TUNING if (value := getattr(arguments, name)) is not None}
    if arguments.profiles and (path := profile_path(arguments, subject)).is_file():
        given["profile"] = str(path)
    return Recipe.from_options(
        {
            "model": "builtin",
            "calib": arguments.calib,
            "seed": arguments.seed,
            "bos": "first",
            "allocator": "auto",
            "backend": subject.backend,
            **subject.options,
            **target,
            **given,
        }
    )


def _tuned(session: Session, evaluation: TokenWindows) -> dict[str, Any]:
    """The plan that was chosen beside equal shares."""
    target = session.request.target
    if target is None:
        raise TypeError("a recipe without a plan has a target")
    start = perf_counter()
    found = tune(session)
    seconds = perf_counter() - start
    equal = allocate(outlined(session), "uniform", target)
    uniform, asked, achieved = _carried_out(session, equal, evaluation)
    if found.plan.budgets != equal.budgets:
        ours, asked, achieved = _carried_out(session, found.plan, evaluation)
    else:
        ours = uniform
    beside = found.document.comparison
    return {
        "chosen": found.document.chosen.name,
        "perplexity": ours,
        "uniform_perplexity": uniform,
        "ratio": ours / uniform,
        "asked": asked,
        "achieved": achieved,
        "seconds": seconds,
        "forward_tokens": found.document.forward_tokens,
        "plans": [one.plans for one in found.document.rounds],
        "comparison": None if beside is None else beside.model_dump(mode="json"),
        "has_profile": found.profile is not None,
    }


def _carried_out(session: Session, plan: Plan, evaluation: TokenWindows) -> tuple[float, float, float]:
    """Perplexity, and what was asked for and achieved."""
    copy = session.on_a_copy()
    totals = compress_(copy, plan).totals
    return perplexity(copy.loaded.model, evaluation).perplexity, totals.asked, totals.achieved


if __name__ == "__main__":
    main()
