"""Evaluation of a model or of an output folder: perplexity, and whether it keeps what was asked."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from owl_compress.cli import options
from owl_compress.cli.console import Output
from owl_compress.cli.evaluation_tables import latency_table, perplexity_table
from owl_compress.cli.latency import DenseOptions, LatencyOptions
from owl_compress.cli.tables import verification_table
from owl_compress.cli.task_tables import accuracy_table
from owl_compress.cli.terminal import tell
from owl_compress.consent import Consent
from owl_compress.documents.accuracy import by_task
from owl_compress.documents.disk import check_output_file
from owl_compress.documents.paths import given_path
from owl_compress.documents.recipe_fields import Topic
from owl_compress.errors import RequestError

if TYPE_CHECKING:  # help must not wait for torch
    from owl_compress.pipeline.evaluating import Evaluated, EvaluationRequest

VIOLATED = 3
"""Exit code of `verify` where the tensors hold what they may not; 2 is a request that cannot be answered."""

EVALUATE_TOPICS = (Topic.TEXT, Topic.EVALUATION, Topic.TASKS, Topic.SEED, Topic.MACHINE)
NOT_FOR_EVALUATION = ("calib", "samples", "sampling", "strict", "partial", "data", "agreement")
_TEXT_PANEL = Topic.EVALUATION.value
PANELS = {Topic.TEXT: _TEXT_PANEL}
"""Of the text options all are about the text that is evaluated on."""


def evaluate(
    model: options.Model,
    data: Annotated[
        str | None,
        typer.Option(
            help="Evaluation text: a file, 'wikitext2', 'ptb', 'c4', 'builtin', or a hub set. "
            "Default wikitext2, and none where tasks are named.",
            rich_help_panel=_TEXT_PANEL,
        ),
    ] = None,
    log_samples: Annotated[
        Path | None,
        typer.Option(
            parser=given_path,
            metavar="PATH",
            help="With tasks: write what was asked and answered here, a line of JSON for each sample.",
            rich_help_panel=Topic.TASKS.value,
        ),
    ] = None,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    **given: Any,
) -> None:
    """Measure a model or a folder that `compress` or `run` wrote: perplexity, accuracy on tasks, speed.

    With --against also how nearly it predicts what the dense model does. With --quiet the perplexity and the
    accuracies alone are printed, one a line.
    """
    from owl_compress.memory import memory_errors
    from owl_compress.pipeline.beside import Beside
    from owl_compress.pipeline.evaluating import EvaluationRequest
    from owl_compress.pipeline.processes import joined

    output = Output(as_json=as_json, quiet=quiet)
    latency, dense = LatencyOptions.of(given), DenseOptions.of(given)
    timing = latency.timing(given.get("device", "auto"), given.get("batch_size", 1), dense)
    widths, table = latency.widths, given_path(latency.cost_table) if latency.cost_table else None
    if table is not None:
        check_output_file(table, inputs=[model, *([data] if data else [])], kind="costs")
    consent = Consent(trust_remote_code, allow_pickle)
    against = Beside.of(dense.against, dense.consent)
    request = EvaluationRequest.of(model, data, given, timing, consent, against)
    if log_samples is not None:
        _check_log(log_samples, request)
    request = replace(request, cost_widths=widths, sample_log=log_samples)
    if table is not None and data is None:
        request = request.without_unnamed_text(given)
    with joined(request.device) as ranks, memory_errors("evaluating"):
        request = request.of_process(ranks)
        output = output.of_process(leads=ranks.leads)
        output.say(f"loading {model}")
        found = request.run(output.progress, output.say)
    if not ranks.leads:
        return
    _answer(found, output)
    if log_samples is not None:
        output.say(f"wrote {log_samples}")
    if table is not None and found.costs is not None:
        found.costs.write(table)
        for note in found.costs.notes:
            output.say(note)
        output.say(f"wrote {table}")
    if quiet and not as_json:
        numbers = [found.perplexity.perplexity] if found.perplexity else []
        numbers += [one.value for one in found.tasks]
        sys.stdout.write("".join(f"{number:.4f}\n" for number in numbers))


def _check_log(path: Path, request: "EvaluationRequest") -> None:
    """Refuse a log of samples that could not be written, or of nothing, before any work."""
    if request.tasks is None:
        raise RequestError("--log-samples is of tasks: name some with --tasks, --task-file or --task-path")
    check_output_file(path, inputs=[request.model, *request.tasks.files])


def _answer(found: "Evaluated", output: Output) -> None:
    """All that was measured, as one JSON value or as a table each."""
    answer: dict[str, Any] = {}
    tables = []
    if found.perplexity:
        answer |= found.perplexity.model_dump(mode="json")
        tables.append(perplexity_table(found.perplexity, found.dense, found.agreement))
    if found.agreement:
        answer["agreement"] = found.agreement.model_dump(mode="json")
    if found.dense:
        answer["dense"] = found.dense.model_dump(mode="json")
    if found.tasks:
        answer["tasks"] = {name: one.model_dump(mode="json") for name, one in by_task(found.tasks).items()}
        tables.append(accuracy_table(found.tasks))
    if found.latency:
        answer["latency"] = [row.model_dump(mode="json") for row in found.latency]
        tables.append(latency_table(found.latency))
    output.answer(answer, tables[0])
    for table in tables[1:]:
        output.show(table)


def verify(
    folder: Annotated[Path, options.path_argument("FOLDER", "A folder that compress or run wrote.")],
    pattern: Annotated[
        str, typer.Option(help="'plan', or N:M with N weights KEPT at most of every M inputs.")
    ] = "plan",
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare the saved tensors with their plan or pattern; exit code 3 if they hold what they may not."""
    from owl_compress.pipeline.stages import verify as verify_folder

    verification = verify_folder(folder, pattern, trust_remote_code=trust_remote_code)
    Output(as_json=as_json, quiet=quiet).answer(
        verification.model_dump(mode="json"), verification_table(verification)
    )
    if not verification.ok:
        first, found = verification.violations[0], len(verification.violations)
        problem = f"{found} of {verification.linears} linears in {folder} keep more than {pattern} allows"
        if first.what:
            problem = f"{folder} is not what {pattern} says, in {found} places"
        tell(f"owl-compress: {problem}: first {first.words}")
        raise typer.Exit(VIOLATED)
