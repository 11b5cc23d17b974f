"""The whole line in one command, and the compression of a plan that is there already."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from owl_compress.cli import options
from owl_compress.cli.console import Output
from owl_compress.cli.tables import needs_table, plan_table, prediction_table, result_table
from owl_compress.cli.task_tables import accuracy_change_table
from owl_compress.cli.tune import scheme_table
from owl_compress.consent import Consent
from owl_compress.documents.plan import Plan
from owl_compress.documents.recipe import Recipe, is_recipe
from owl_compress.documents.recipe_fields import Topic

if TYPE_CHECKING:  # a refusal must not wait for torch
    from owl_compress.pipeline.finished import Outcome
    from owl_compress.pipeline.request import Request
    from owl_compress.pipeline.session import Session

RUN_TOPICS = (
    Topic.BUDGET, Topic.ALLOCATOR, Topic.SHAPE, Topic.BACKEND, Topic.STORAGE, Topic.TEXT, Topic.MEASURING,
    Topic.SENSITIVITY, Topic.SEED, Topic.EVALUATION, Topic.TASKS, Topic.MACHINE,
)  # fmt: skip
COMPRESS_TOPICS = (
    Topic.BACKEND, Topic.STORAGE, Topic.TEXT, Topic.SEED, Topic.EVALUATION, Topic.TASKS, Topic.MACHINE
)  # fmt: skip


def run(
    model: Annotated[str, typer.Argument(help="A model as elsewhere, or a recipe (.yaml).")],
    out: options.OptionalOut = None,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    **given: Any,
) -> None:
    """Measure, allocate, compress and evaluate in one go; or do again what a recipe says."""
    from owl_compress.pipeline.methods import DEFAULT_ALLOCATOR, DEFAULT_BACKEND, DEFAULT_FROM_PROFILE
    from owl_compress.pipeline.request import Request

    if is_recipe(model):
        recipe = Recipe.read(model).with_options(given)
        where = model
    else:
        allocator = DEFAULT_FROM_PROFILE if "profile" in given else DEFAULT_ALLOCATOR
        defaults = {"model": model, "allocator": allocator, "backend": DEFAULT_BACKEND}
        recipe, where = Recipe.from_options(defaults | given, "options"), "options"
    consent = Consent(trust_remote_code, allow_pickle)
    target = _Target(out, overwrite=overwrite, resume=resume, dry_run=dry_run)
    _execute(Request.of(recipe, where, consent), target, Output(as_json=as_json, quiet=quiet))


def compress(
    model: options.Model,
    plan: Annotated[Path, options.path_option("The plan that `allocate` wrote.")],
    out: options.OptionalOut = None,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    **given: Any,
) -> None:
    """Carry a plan out with a backend, and write the checkpoint."""
    from owl_compress.pipeline.methods import DEFAULT_BACKEND
    from owl_compress.pipeline.request import Request

    Plan.read(plan)
    defaults = {"model": model, "plan": str(plan), "backend": DEFAULT_BACKEND}
    recipe = Recipe.from_options(defaults | given, "options")
    consent = Consent(trust_remote_code, allow_pickle)
    target = _Target(out, overwrite=overwrite, resume=resume, dry_run=dry_run)
    _execute(Request.of(recipe, "options", consent), target, Output(as_json=as_json, quiet=quiet))


@dataclass(frozen=True)
class _Target:
    """The folder to write, and whether it is: a dry run only looks whether it could be."""

    out: Path | None
    overwrite: bool
    resume: bool
    dry_run: bool

    def __post_init__(self) -> None:
        options.check_out_named(self.out, "the folder to write", dry_run=self.dry_run)


def _execute(request: "Request", target: _Target, output: Output) -> None:
    """Carry the request out and show what came of it."""
    from owl_compress.memory import memory_errors
    from owl_compress.pipeline.execution import check_output, execute
    from owl_compress.pipeline.finished import finished_before
    from owl_compress.pipeline.processes import joined
    from owl_compress.pipeline.session import Session

    if target.resume and target.out and (done := finished_before(request, target.out)):
        output.say(f"{target.out} is finished already")
        _show(done, output)
        return
    with joined(request.device) as ranks, memory_errors("running the recipe"):
        output = output.of_process(leads=ranks.leads)
        if ranks.leads:
            check_output(request, target.out, overwrite=target.overwrite, resume=target.resume)
        output.say(f"loading {request.recipe.model}")
        session = Session.open(request, progress=output.progress, announce=output.say)
        if target.dry_run:
            _show_forecast(session, output)
            return
        done = execute(session, target.out, overwrite=target.overwrite, resume=target.resume)
    _show(done, output)
    output.say(f"wrote {target.out}")


def _show(done: "Outcome", output: Output) -> None:
    """What came of a run."""
    output.answer(done.result.model_dump(mode="json"), plan_table(done.plan, done.result))
    output.show(result_table(done.result))
    if done.result.tasks:
        output.show(accuracy_change_table(done.result.tasks))


def _show_forecast(session: "Session", output: Output) -> None:
    """Measure and allocate, and show what the rest of the run would need and leave.

    Where plans are tried, that would be most of the run: what would be tried is shown instead.
    """
    from owl_compress.pipeline.execution import make_plan
    from owl_compress.pipeline.expected_time import with_seconds
    from owl_compress.pipeline.feasibility import forecast
    from owl_compress.pipeline.tuning import scheme_of

    if session.request.candidates:
        scheme = scheme_of(session)
        output.answer(scheme.as_json(), scheme_table(scheme))
        return
    _, plan = make_plan(session)
    found = forecast(session, plan)
    for note in found.notes:
        output.say(note)
    stages = with_seconds(session, found.stages, always=True)
    answer = {
        "plan": plan.model_dump(mode="json"),
        "prediction": found.prediction.model_dump(mode="json"),
        "stages": [stage.model_dump(mode="json") for stage in stages],
    }
    output.answer(answer, plan_table(plan))
    output.show(prediction_table(found.prediction, plan))
    if stages:
        output.show(needs_table(stages))
