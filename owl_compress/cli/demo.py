"""The demonstration: uniform against OWL on the embedded model, with nothing to download."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from owl_compress.cli import options
from owl_compress.cli.console import Output
from owl_compress.cli.tables import new_table
from owl_compress.documents.disk import check_output_folder
from owl_compress.documents.plan import Plan
from owl_compress.documents.recipe import Recipe

if TYPE_CHECKING:  # --help must not wait for torch
    from owl_compress.checkpoints.loading import LoadedModel
    from owl_compress.data.windows import TokenWindows
    from owl_compress.pipeline.line import Line, Run

_SPARSITY = 0.6
_METRIC, _LAM = "lod@10", 0.08
_SAMPLES, _MEASURE_SAMPLES, _SEQ_LEN, _WINDOWS = 16, 16, 512, 16


@dataclass(frozen=True)
class _Row:
    """One line of the table."""

    name: str
    asked: float
    achieved: float
    perplexity: float
    seconds: float


def demo(
    out: options.Out = Path("demo"),
    keep: Annotated[bool, typer.Option("--keep", help="Also save both checkpoints.")] = False,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Prune the embedded SmolLM2-135M to 60 % sparsity, uniformly and by OWL, and compare."""
    from owl_compress.documents.disk import output_folder
    from owl_compress.pages.chart import budget_chart
    from owl_compress.pipeline.line import Line
    from owl_compress.pipeline.stages import hold_out, save

    output = Output(as_json=as_json, quiet=quiet)
    check_output_folder(out)
    lines = {name: Line(_recipe(name, device), output.progress) for name in ("uniform", "owl")}
    output.say("loading the embedded SmolLM2-135M")
    loaded = lines["owl"].load()
    dense_weights = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    calibration = lines["owl"].windows(loaded)
    held_out = hold_out(loaded, "builtin", seq_len=_SEQ_LEN, max_windows=_WINDOWS)
    rows = [_Row("dense", 0.0, 0.0, lines["owl"].evaluate(loaded, held_out).perplexity, 0.0)]
    with output_folder(out) as folder:
        plans: dict[str, Plan] = {}
        for name, line in lines.items():
            done, row = _prune_(name, line, loaded, calibration, held_out)
            rows.append(row)
            plans[name] = done.plan
            done.result.write(folder / f"result-{name}.json")
            done.plan.write(folder / f"plan-{name}.json")
            if keep:
                save(loaded, done.result, done.plan, folder / name, recipe=line.recipe)
            loaded.model.load_state_dict(dense_weights)
            if done.report is not None and name == "owl":
                done.report.write(folder / "report.json")
                others = {"uniform": plans["uniform"]}
                budget_chart(done.report, done.plan, folder / "budgets.png", _METRIC, others=others)
    output.answer([row.__dict__ for row in rows], _table(rows))
    output.say(
        f"the chart of importance and budgets is {out / 'budgets.png'}; reports and plans lie beside it"
    )


def _prune_(
    name: str,
    line: "Line",
    loaded: "LoadedModel",
    calibration: "TokenWindows | None",
    held_out: "TokenWindows",
) -> "tuple[Run, _Row]":
    """Prune the dense model as `line` says, timed, and evaluate what is left."""
    from owl_compress.pipeline.line import Run

    start = perf_counter()
    report, plan = line.plan(loaded, calibration)
    result = line.compress_(loaded, plan, calibration)
    seconds = perf_counter() - start
    perplexity = line.evaluate(loaded, held_out).perplexity
    row = _Row(name, 1 - result.totals.asked, 1 - result.totals.achieved, perplexity, seconds)
    return Run(report, plan, result), row


def _table(rows: Sequence[_Row]) -> Table:
    table = new_table(
        f"SmolLM2-135M at {_SPARSITY:.0%} sparsity with Wanda, calibrated and evaluated on the builtin text",
        "budgets",
        "sparsity asked",
        "sparsity achieved",
        "perplexity",
        "seconds",
    )
    for row in rows:
        table.add_row(
            row.name,
            f"{row.asked:.4f}",
            f"{row.achieved:.4f}",
            f"{row.perplexity:.2f}",
            f"{row.seconds:.1f}" if row.seconds else "",
        )
    return table


def _recipe(allocator: str, device: str) -> Recipe:
    owl: dict[str, Any] = {"metric": _METRIC, "lam": _LAM, "measure_samples": _MEASURE_SAMPLES}
    return Recipe.from_options(
        {
            "model": "builtin",
            "allocator": allocator,
            "backend": "wanda",
            "sparsity": _SPARSITY,
            "calib": "builtin",
            "data": "builtin",
            "samples": _SAMPLES,
            "seq_len": _SEQ_LEN,
            "max_windows": _WINDOWS,
            "device": device,
            **(owl if allocator == "owl" else {}),
        },
        "demo",
    )
