"""A session carried out: measure, allocate, compress, evaluate, save."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from owl_compress.arguments import checked
from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.checkpoints.packed_package import require_package
from owl_compress.compression.contract import CheckpointBackend, FinishChecker, ModelFinisher, Surveyed
from owl_compress.compression.driver import WalkOptions, compress_with_
from owl_compress.consent import NO_CONSENT, Consent
from owl_compress.documents.accuracy import AccuracyChange, TaskAccuracy, by_task
from owl_compress.documents.journal import MeasuredModel
from owl_compress.documents.output_folders import check_output_folder, output_folder
from owl_compress.documents.paths import given_path
from owl_compress.documents.plan import Plan
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import Result
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.errors import RequestError
from owl_compress.evaluation.tasks import accuracy
from owl_compress.memory import memory_errors
from owl_compress.pipeline.dividing import divide
from owl_compress.pipeline.expected_time import times_in_words, with_seconds
from owl_compress.pipeline.feasibility import check_plan, check_request, forecast
from owl_compress.pipeline.finished import Outcome, finished_before
from owl_compress.pipeline.folder import earlier_steps, save, write_documents
from owl_compress.pipeline.handover import compress_checkpoint_
from owl_compress.pipeline.judging import judge
from owl_compress.pipeline.needs import check_room, in_words, needs_of_session
from owl_compress.pipeline.profiling import profile_of
from owl_compress.pipeline.quality import evaluate_dense, evaluation_beside
from owl_compress.pipeline.reports import measured_and_seen, outlined
from owl_compress.pipeline.request import Request
from owl_compress.pipeline.resuming import NOTHING_KEPT, Kept, check_unfinished, kept_until_done
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.settling import settled_recipe
from owl_compress.pipeline.tuning_search import search
from owl_compress.pipeline.unfinished import check_alone
from owl_compress.progress import SILENT, Progress
from owl_compress.walk.dense_statistics import DenseStatistics
from owl_compress.walk.ranks import Ranks


@checked
def run(
    recipe: Recipe,
    out: Path | str | None,
    loaded: LoadedModel | None = None,
    progress: Progress = SILENT,
    consent: Consent = NO_CONSENT,
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> Outcome:
    """Do all that `recipe` asks for, and write the folder `out` unless it is None.

    A `loaded` model is used, and compressed in place, instead of loading one. `consent` is what the model of
    the recipe may run while it loads. With `overwrite` an output of ours in `out` is replaced. With `resume`
    every block that is done is kept beside `out` until all are, and a run that was cut off is gone on with:
    its outcome is that of one that was not, to the last bit. One that is done is handed back as it is.

    Raises:
        RequestError: see everything this calls; with `strict` also any fallback; with `resume` also a run
            that was another, naming what differs.
    """
    out = None if out is None else given_path(out)
    request = Request.of(recipe, consent=consent)
    if resume and loaded is not None:
        raise RequestError("a run is resumed with the model that its recipe names: give none that is loaded")
    if resume and out is not None and (done := finished_before(request, out)):
        return done
    if out is None and isinstance(request.backend, CheckpointBackend):
        raise RequestError(f"backend {recipe.backend!r} writes its own checkpoint: name a folder")
    check_output(request, out, overwrite=overwrite, resume=resume)
    with memory_errors("running the recipe"):
        session = Session.open(request, loaded, progress=progress)
        return execute(session, out, overwrite=overwrite, resume=resume)


def check_output(
    request: Request, out: Path | None, *, overwrite: bool = False, resume: bool = False
) -> None:
    """Refuse an output that could not be written, or measured, before a model is loaded.

    Raises:
        RequestError: a folder that holds something or cannot be written, a package that is missing, or no
            text to measure agreement on.
    """
    if request.recipe.agreement and request.recipe.data is None:
        raise RequestError("agreement is measured on the evaluation text: name it with --data, or drop it")
    if out is None:
        return
    check_output_folder(out, overwrite=overwrite, inputs=[request.recipe.model])
    check_unfinished(request, out, resume=resume, overwrite=overwrite)
    if isinstance(request.backend, CheckpointBackend):
        request.backend.check_ready()
    elif request.keeps_codes:
        require_package()


def execute(session: Session, out: Path | None, *, overwrite: bool = False, resume: bool = False) -> Outcome:
    """Carry out a session whose output was checked.

    Processes that have joined a group of torch.distributed do it together: they divide what the backend sees,
    what it solves and what is evaluated, and the first of them writes.

    Raises:
        RequestError: see `run`; or what several processes cannot do.
    """
    ranks = Ranks.current()
    if ranks.of > 1:
        check_alone(ranks, resume=resume)
        _check_together(session)
        out = out if ranks.leads else None
    with memory_errors("running the recipe"):
        if out:
            session.check_storage()
        with kept_until_done(session, out, resume=resume) as kept:
            if out and not session.writes_by_itself:
                needs = needs_of_session(session, resume=resume)
                session.announce(in_words(needs, session.request.device))
                check_room(session, needs)
                known, tries = with_seconds(session, needs), session.request.reads_damage
                if expected := times_in_words(known, session.recipe.backend, tries_plans=tries):
                    session.announce(expected)
            return _carried_out(session, out, kept, overwrite=overwrite)


def _check_together(session: Session) -> None:
    """Refuse what one process alone can do.

    Raises:
        RequestError: a backend with a walk of its own.
    """
    if session.writes_by_itself:
        raise RequestError(
            f"backend {session.request.backend.name!r} has a walk of its own, which processes cannot divide: "
            "start one without torchrun"
        )


def _carried_out(session: Session, out: Path | None, kept: Kept, *, overwrite: bool) -> Outcome:
    """The outcome of a session, of which more and more is `kept` meanwhile."""
    loaded = session.loaded
    held_out = session.held_out  # a text that is missing is told before the long work
    tuned = search(session, compress_) if session.request.candidates else None
    source, plan = (tuned.source, tuned.plan) if tuned else make_plan(session, kept)
    report = source if isinstance(source, ImportanceReport) else None
    profile = source if isinstance(source, SensitivityProfile) else None
    judged = judge(session, source, plan, compress_)
    plan = judged.plan
    if out:
        n_bytes = forecast(session, plan).prediction.checkpoint_bytes
        check_output_folder(out, overwrite=overwrite, n_bytes=n_bytes)
    kept.settle_plan(plan)
    dense = evaluate_dense(session, kept) if held_out else None
    scores = score(session)
    with _own_folder(session, out, overwrite=overwrite) as folder:
        result = judged.told(compress_(session, plan, folder, kept), session)
        if tuned:
            result = result.model_copy(update={"notes": (*result.notes, tuned.in_words)})
        if dense:
            result = result.model_copy(update={"evaluation": evaluation_beside(session, dense)})
        if scores:
            tasks = AccuracyChange(dense=scores, compressed=score(session))
            result = result.model_copy(update={"tasks": tasks})
        recipe, backend = settled_recipe(session, result, profile), session.request.backend
        if folder and isinstance(backend, CheckpointBackend):
            stored = backend.stored_format
            recipe = recipe.seen_from(out or folder)
            write_documents(folder, loaded, result, plan, stored, report=source, recipe=recipe)
        elif out:
            result = save(
                loaded,
                result,
                plan,
                out,
                report=tuned or source,
                recipe=recipe,
                keeps_codes=session.request.keeps_codes,
                export=session.request.export,
                overwrite=overwrite,
            )
    return Outcome(report, plan, result, profile)


def _own_folder(
    session: Session, out: Path | None, *, overwrite: bool
) -> AbstractContextManager[Path | None]:
    """The folder that a backend writes its own checkpoint into; None for all others, which do not."""
    return output_folder(out, overwrite=overwrite) if out and session.writes_by_itself else nullcontext()


@checked
def make_plan(
    session: Session, kept: Kept = NOTHING_KEPT
) -> tuple[ImportanceReport | SensitivityProfile | None, Plan]:
    """The request's own plan; or else measure the model, as the allocator asks for it, and allocate.

    What was measured is `kept`, or was before.

    Returns:
        The report or the profile, None if nothing was measured, and the plan.

    Raises:
        RequestError: a budget that cannot be met.
    """
    request = session.request
    if request.plan is not None:
        request.plan.check_fits(session.structure.linear_sizes)
        check_plan(session, request.plan)
        return None, request.plan
    if request.candidates:
        tuned = search(session, compress_)
        return tuned.source, tuned.plan
    check_request(session)
    if request.reads_damage:
        profile = kept.notes.step("sensitivity", SensitivityProfile, partial(profile_of, session))
        return profile, divide(session, profile)
    report = _report(session, kept)
    return report, divide(session, report or outlined(session))


def _report(session: Session, kept: Kept) -> ImportanceReport | None:
    """What is measured, if anything is; what was seen on the way is told to the session."""
    if session.measuring is None:
        return None
    found = kept.notes.step("measured", MeasuredModel, partial(measured_and_seen, session))
    session.keep(DenseStatistics.noted(found.seen, session.measuring.record))
    return found.report


def score(session: Session) -> dict[str, TaskAccuracy]:
    """Accuracy of the model as it is now, on the request's tasks; empty where it names none.

    Raises:
        RequestError: see `owl_compress.evaluation.tasks.accuracy`.
    """
    if session.tasks is None:
        return {}
    return by_task(
        accuracy(
            session.loaded.model,
            session.loaded.tokenizer,
            session.tasks,
            device=session.request.device,
            progress=session.progress,
        )
    )


def compress_(session: Session, plan: Plan, folder: Path | None = None, kept: Kept = NOTHING_KEPT) -> Result:
    """Compress the model in place with the request's backend; one with its own format writes `folder`.

    What is done is `kept`, or was before.

    Raises:
        RequestError: what the backend refuses; with `strict` also any fallback.
    """
    backend, recipe, journal = session.request.backend, session.recipe, kept.journal
    session.check_fresh()
    if isinstance(backend, CheckpointBackend):
        if folder is None:
            raise RequestError(f"backend {backend.name!r} writes its own checkpoint: name a folder")
        result = compress_checkpoint_(session, backend, plan, folder)
    else:
        result = compress_with_(
            session.loaded.model,
            plan,
            backend,
            session.calibration,
            WalkOptions(
                session.request.device,
                recipe.batch_size,
                keep_on=recipe.activations,
                progress=session.progress,
                before_change=session.spend,
                after_survey=partial(_check_finish, session, plan),
                seen=session.seen,
                journal=journal,
                notes=kept.notes,
            ),
            structure=session.structure,
            identity=session.identity,
            partial=recipe.partial,
            statistics=session.statistics_for(plan),
        )
        if isinstance(backend, ModelFinisher):
            backend.finish_(session.loaded.model)
    if journal is not None and journal.n_restored:
        n_before = journal.n_restored
        told = f"resumed: {n_before} blocks were done before, in time that wall_seconds leaves out"
        result = result.model_copy(update={"notes": (*result.notes, told)})
    _refuse_fallbacks(result, strict=recipe.strict)
    return result.model_copy(update={"earlier": earlier_steps(session.loaded)})


def _check_finish(session: Session, plan: Plan, surveyed: Surveyed) -> None:
    """Refuse, while nothing is changed, what could not be finished as the backend is asked to.

    Raises:
        RequestError: what the backend refuses.
    """
    if isinstance(backend := session.request.backend, FinishChecker):
        backend.check_finish(session.loaded.model, session.structure, plan, surveyed)


def _refuse_fallbacks(result: Result, *, strict: bool) -> None:
    """With `strict`, refuse a result that did not go the first way.

    Raises:
        RequestError: there is a fallback.
    """
    if strict and result.fallbacks:
        first = result.fallbacks[0]
        raise RequestError(
            f"--strict: {first.what} at {first.where} ({len(result.fallbacks)} fallbacks in all)"
        )
