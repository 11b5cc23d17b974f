"""The demonstration: uniform against OWL on the embedded model, with nothing to download."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from owl_compress.cli import options
from owl_compress.cli.console import Output
from owl_compress.cli.sheet import Column, Sheet
from owl_compress.documents.output_folders import check_output_folder
from owl_compress.documents.plan import Plan
from owl_compress.documents.recipe import Recipe

_SPARSITY = 0.6
_PAGE = "page.html"
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
    overwrite: options.Overwrite = False,
    keep: Annotated[bool, typer.Option("--keep", help="Also save both checkpoints.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Prune the embedded SmolLM2-135M to 60 % sparsity, uniformly and by OWL, and compare."""
    from owl_compress.documents.measurements import Evaluation
    from owl_compress.documents.output_folders import output_folder
    from owl_compress.pages.chart import budget_chart
    from owl_compress.pipeline.folder import save
    from owl_compress.pipeline.quality import evaluate
    from owl_compress.pipeline.session import Session
    from owl_compress.pipeline.trial import try_out

    output = Output(as_json=as_json, quiet=quiet)
    check_output_folder(out, overwrite=overwrite)
    output.say("a few minutes on a CPU: SmolLM2-135M is loaded, measured and pruned twice")
    dense = Session.open(_recipe("uniform", device), progress=output.progress)
    before = evaluate(dense)
    rows = [_Row("dense", 0.0, 0.0, before.perplexity, 0.0)]
    with output_folder(out, overwrite=overwrite) as folder:
        plans: dict[str, Plan] = {}
        for name in ("uniform", "owl"):
            session = Session.open(
                _recipe(name, device), dense.loaded, dense.calibration, progress=output.progress
            )
            trial = try_out(session, dense.held_out_windows)
            measured = Evaluation(dense=before, compressed=trial.perplexity)
            result = trial.result.model_copy(update={"evaluation": measured})
            totals = result.totals
            rows.append(
                _Row(name, 1 - totals.asked, 1 - totals.achieved, trial.perplexity.perplexity, trial.seconds)
            )
            result.write(folder / f"result-{name}.json")
            trial.plan.write(folder / f"plan-{name}.json")
            if keep:
                save(trial.session.loaded, result, trial.plan, folder / name, recipe=session.recipe)
            if trial.report is not None:
                trial.report.write(folder / "report.json")
                budget_chart(trial.report, trial.plan, folder / "budgets.png", _METRIC, others=plans)
            plans[name] = trial.plan
        _write_page(folder)
    output.answer([row.__dict__ for row in rows], _table(rows))
    output.say(f"reports, plans, results and the chart lie in {out}; open {out / _PAGE} to look at them")


def _write_page(folder: Path) -> None:
    """Write the page of all documents in the folder, beside them."""
    from owl_compress.documents.disk import write_text
    from owl_compress.documents.findings import read_findings
    from owl_compress.pages.document_page import document_page

    write_text(folder / _PAGE, document_page(read_findings([folder])))


def _table(rows: Sequence[_Row]) -> Sheet:
    return Sheet(
        f"SmolLM2-135M at {_SPARSITY:.0%} sparsity with Wanda",
        (
            Column("budgets", tuple(row.name for row in rows), is_text=True),
            Column("sparsity asked", tuple(f"{row.asked:.4f}" for row in rows)),
            Column("sparsity achieved", tuple(f"{row.achieved:.4f}" for row in rows)),
            Column("perplexity", tuple(f"{row.perplexity:.2f}" for row in rows)),
            Column("seconds", tuple(f"{row.seconds:.1f}" if row.seconds else "" for row in rows)),
        ),
        (
            f"calibrated and evaluated on the builtin text; perplexity over {_WINDOWS} windows of {_SEQ_LEN}",
            "tokens: lower is better",
        ),
    )


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
