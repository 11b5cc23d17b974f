"""What does a short training bring back, at what speed? Perplexity before and after, by method and tokens.

    python benchmarks/recovery.py --calib validation.txt --data test.txt --folders FOLDER
        [--only sparsegpt-0.7] [--methods lora,masked] [--tokens 30k,300k] [--loss lm,distill] > rows.jsonl
    python benchmarks/recovery.py --calib validation.txt --data test.txt --folders FOLDER --speed > rows.jsonl

The texts are WikiText-2 validation and test. Models are compressed by owl as in the other benchmarks (the
first 12 windows of 512 tokens, float32), trained on windows of 512 of the validation text, and evaluated on
the first 20 windows of 512 of the test text, which nothing was chosen on. `regained` is the share of the
logarithm of perplexity that was lost and came back. Compressed models are kept in FOLDER and found there
again. With `--speed` the training is held against a plain loop of torch and peft on the same model, tokens
and adapter, step by step in turn: `ratio` is tokens per second of ours by those of the loop, its median.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from math import log
from pathlib import Path
from shutil import rmtree
from statistics import median
from time import process_time
from typing import Any

import torch
from rows import print_row

import owl_compress as oc
from owl_compress import Recipe, load
from owl_compress.models.structure import find_structure
from owl_compress.recovery.lora import Lora
from owl_compress.recovery.losses import next_token_loss
from owl_compress.recovery.training import TrainingPlan, train_

SEQ_LEN = 512
STATISTICS = {"samples": 12, "seq_len": SEQ_LEN, "sampling": "first", "dtype": "float32"}
SPEED_STEPS = 6


@dataclass(frozen=True)
class Case:
    """A compression, by the name of its folder."""

    name: str
    options: dict[str, Any]


CASES = (
    *(Case(f"sparsegpt-{s}", {"backend": "sparsegpt", "sparsity": s}) for s in (0.6, 0.7)),
    *(
        Case(f"structured-{r}", {"backend": "structured", "repair": True, "prune_ratio": r})
        for r in (0.2, 0.4)
    ),
)
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "lora merged": {"method": "lora", "merge": True},
    "masked": {"method": "masked"},
    "bias": {"method": "bias"},
}


def main() -> None:
    """One row for each case, method, loss and number of tokens; or one of speed."""
    arguments = _arguments()
    for case in (one for one in CASES if arguments.only in {None, one.name}):
        folder = _compressed(case, arguments)
        if arguments.speed:
            print_row("recovery-speed", name=case.name, method="lora", **_speed(folder, arguments))
            continue
        dense = oc.evaluate(load("builtin", dtype="float32"), arguments.data, seq_len=SEQ_LEN, max_windows=20)
        asked = product(
            *(value.split(",") for value in (arguments.methods, arguments.loss, arguments.tokens))
        )
        for method, loss, tokens in asked:
            row = _recovered(folder, arguments, method, {"loss": loss, "tokens": tokens})
            lost = log(row["before"] / dense.perplexity)
            regained = log(row["before"] / row["after"]) / lost
            print_row("recovery", name=case.name, **row, dense=dense.perplexity, regained=regained)


def _arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    for name in ("calib", "data", "folders"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--only", choices=[case.name for case in CASES])
    parser.add_argument("--methods", default="lora,lora merged,masked,bias")
    parser.add_argument("--loss", default="lm")
    parser.add_argument("--tokens", default="30k")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", action="store_true")
    return parser.parse_args()


def _compressed(case: Case, arguments: Namespace) -> Path:
    """The folder of a compression, which is made if it is not there."""
    folder = Path(arguments.folders) / case.name
    if not folder.exists():
        given = {"model": "builtin", "allocator": "owl", "calib": arguments.calib, **STATISTICS}
        oc.run(Recipe.from_options({**given, **case.options}, case.name), folder)
    return folder


def _recovered(folder: Path, arguments: Namespace, method: str, options: dict[str, Any]) -> dict[str, Any]:
    """What a training came to; what it wrote is removed again."""
    out = folder.with_name(f"{folder.name}-recovered")
    start = process_time()
    result = oc.recover(
        folder, out, arguments.calib, held_out=arguments.data, max_windows=20, seq_len=SEQ_LEN,
        seed=arguments.seed, **METHODS[method], **options,
    )  # fmt: skip
    rmtree(out)
    if result is None:
        raise RuntimeError("this is one process")
    record = result.recoveries[-1]
    return {
        "unit": str(result.budgets[0].unit),
        "kept": result.totals.achieved,
        "method": method,
        "loss": record.loss,
        "tokens": record.tokens,
        "steps": record.steps,
        "learning_rate": record.learning_rate,
        "trained_parameters": record.trained_parameters,
        "seed": record.seed,
        "before": record.before.perplexity,
        "after": record.after.perplexity,
        "minutes": record.seconds / 60,
        "cpu_seconds": process_time() - start,
        "tokens_per_second": record.tokens_per_second,
        "peak_host_bytes": record.peak_host_bytes,
    }


def _speed(folder: Path, arguments: Namespace) -> dict[str, Any]:
    """CPU seconds of single steps of ours and of a plain loop, in turn, and the ratio of speeds."""
    loaded = load(folder, dtype="float32", offload="none")
    ids = oc.calibrate(loaded, arguments.calib, samples=2 * SPEED_STEPS, seq_len=SEQ_LEN).ids
    theirs = _plain_loop(deepcopy(loaded.model), ids)
    ours = _our_steps(loaded.model, ids)
    pairs = [(next(ours), next(theirs)) for _ in range(SPEED_STEPS)][1:]  # the first warms up
    return {
        "seq_len": SEQ_LEN,
        "cpu_seconds_per_step": median(mine for mine, _ in pairs),
        "cpu_seconds_per_step_of_plain_loop": median(plain for _, plain in pairs),
        "ratio": median(plain / mine for mine, plain in pairs),
        "steps": len(pairs),
    }


def _our_steps(model: Any, ids: torch.Tensor) -> Iterator[float]:
    """CPU seconds of each step of `train_`, of one sequence."""
    trainee = Lora().prepare_(model, find_structure(model))
    for index in range(SPEED_STEPS):
        plan = TrainingPlan(ids[index : index + 1], 1, 1, 1, 1e-3, 0.0, 0)
        start = process_time()
        train_(trainee, plan, next_token_loss, device=torch.device("cpu"))
        yield process_time() - start


def _plain_loop(model: Any, ids: torch.Tensor) -> Iterator[float]:
    """CPU seconds of each step of a loop as people write it, with the same adapter."""
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - optional

    names = [linear.name for linear in find_structure(model).linears]
    adapted: Any = get_peft_model(
        model, LoraConfig(r=16, lora_alpha=32, target_modules=names, task_type="CAUSAL_LM")
    )
    adapted.train()
    optimizer = torch.optim.AdamW([one for one in adapted.parameters() if one.requires_grad], lr=1e-3)
    for index in range(SPEED_STEPS):
        start = process_time()
        batch = ids[index : index + 1]
        adapted(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield process_time() - start


if __name__ == "__main__":
    main()
