"""From a model to a plan: measure, and allocate."""

from pathlib import Path
from typing import Annotated, Any

import typer

from owl_compress.cli import options
from owl_compress.cli.console import Output
from owl_compress.cli.tables import plan_table, report_table
from owl_compress.consent import Consent
from owl_compress.documents.disk import check_output_file
from owl_compress.documents.kinds import read_source
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.recipe_fields import Topic

MEASURE_TOPICS = (Topic.TEXT, Topic.SEED, Topic.MACHINE)
ALLOCATE_TOPICS = (Topic.BUDGET, Topic.ALLOCATOR, Topic.SHAPE, Topic.SEED)


def measure(
    model: options.Model,
    out: options.OutFile,
    metric: Annotated[
        list[str] | None, typer.Option(help="A metric besides the default ones; repeatable.")
    ] = None,
    resume: options.Resume = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    **given: Any,
) -> None:
    """Measure the importance of every block and linear, and write the report."""
    from owl_compress.pipeline.measuring import Measurement
    from owl_compress.pipeline.processes import joined
    from owl_compress.pipeline.unfinished import kept_until_written

    output = Output(as_json=as_json, quiet=quiet)
    check_output_file(out, inputs=[model, given.get("calib", "")], kind="report")
    measurement = Measurement.of(model, given, metric or (), Consent(trust_remote_code, allow_pickle))
    with joined(measurement.device) as ranks:
        output = output.of_process(leads=ranks.leads)
        with kept_until_written(out, resume=resume, ranks=ranks) as keeping:
            output.say(keeping.loading(model))
            report = measurement.run(output.progress, keeping)
            if ranks.leads and not keeping.is_finished:
                report.write(out)
    if not ranks.leads:
        return
    output.answer(report.model_dump(mode="json"), report_table(report))
    output.say(keeping.outcome)


def allocate(
    source: Annotated[
        Path,
        options.path_argument(
            "FILE", "The report that `measure` wrote, or the profile that `sensitivity` did."
        ),
    ],
    out: options.OptionalOutFile = None,
    dry_run: options.DryRunOfPlan = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    **given: Any,
) -> None:
    """Divide a budget over the blocks of a report or a sensitivity profile, and write the plan."""
    from owl_compress.pipeline.methods import default_for
    from owl_compress.pipeline.request import plan_for

    options.check_out_named(out, "the plan file", dry_run=dry_run)
    if out is not None:
        check_output_file(out, inputs=[source], kind="plan")
    measured = read_source(source)
    # The request of a run, whose model is measured already and whose backend is still open.
    defaults = {"model": str(source), "backend": "any", "allocator": default_for(measured)}
    recipe = Recipe.from_options(defaults | given, "options")
    output = Output(as_json=as_json, quiet=quiet)
    plan = plan_for(measured, recipe)
    if out is not None and not dry_run:
        plan.write(out)
    output.answer(plan.model_dump(mode="json"), plan_table(plan))
    if out is not None and not dry_run:
        output.say(f"wrote {out}")
