"""Evaluation of a model or of an output folder: perplexity, and whether it keeps what was asked."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from owl_compress.cli import options
from owl_compress.cli.console import Output
from owl_compress.cli.latency import DenseOptions, LatencyOptions
from owl_compress.cli.tables import latency_table, perplexity_table, verification_table
from owl_compress.cli.terminal import tell
from owl_compress.consent import Consent
from owl_compress.documents.disk import check_output_file
from owl_compress.documents.paths import given_path
from owl_compress.documents.recipe import Topic

VIOLATED = 3
"""Exit code of `verify` where the tensors hold what they may not; 2 is a request that cannot be answered."""

EVALUATE_TOPICS = (Topic.TEXT, Topic.EVALUATION, Topic.MACHINE)
NOT_FOR_EVALUATION = ("calib", "samples", "sampling", "strict", "partial", "data", "agreement")
_TEXT_PANEL = Topic.EVALUATION.value
PANELS = {Topic.TEXT: _TEXT_PANEL}
"""Of the text options all are about the text that is evaluated on."""


def evaluate(
    model: options.Model,
    data: Annotated[
        str,
        typer.Option(
            help="Evaluation text: a file, 'wikitext2', 'ptb', 'c4', 'builtin', or a hub set.",
            rich_help_panel=_TEXT_PANEL,
        ),
    ] = "wikitext2",
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    **given: Any,
) -> None:
    """Measure the perplexity of a model or of a folder that `compress` or `run` wrote, and how fast it is.

    With --against also how nearly it predicts what the dense model does. With --quiet the perplexity alone is
    printed.
    """
    from owl_compress.memory import memory_errors
    from owl_compress.pipeline.beside import Beside
    from owl_compress.pipeline.evaluating import EvaluationRequest

    output = Output(as_json=as_json, quiet=quiet)
    latency, dense = LatencyOptions.of(given), DenseOptions.of(given)
    timing = latency.timing(given.get("device", "auto"), given.get("batch_size", 1), dense)
    widths, table = latency.widths, given_path(latency.cost_table) if latency.cost_table else None
    if table is not None:
        check_output_file(table, inputs=[model, data], kind="costs")
    consent = Consent(trust_remote_code, allow_pickle)
    against = Beside.of(dense.against, dense.consent)
    request = replace(EvaluationRequest.of(model, data, given, timing, consent, against), cost_widths=widths)
    output.say(f"loading {model}")
    with memory_errors("evaluating"):
        found = request.run(output.progress, output.say)
    answer = found.perplexity.model_dump(mode="json")
    if found.agreement:
        answer["agreement"] = found.agreement.model_dump(mode="json")
    if found.dense:
        answer["dense"] = found.dense.model_dump(mode="json")
    if timing:
        answer["latency"] = [row.model_dump(mode="json") for row in found.latency]
    output.answer(answer, perplexity_table(found.perplexity, found.dense, found.agreement))
    if timing:
        output.show(latency_table(found.latency))
    if table is not None and found.costs is not None:
        found.costs.write(table)
        for note in found.costs.notes:
            output.say(note)
        output.say(f"wrote {table}")
    if quiet and not as_json:
        sys.stdout.write(f"{found.perplexity.perplexity:.4f}\n")


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
