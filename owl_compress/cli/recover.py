"""Recovery: a short training of what was compressed."""

from typing import Annotated, Any

import typer

from owl_compress.cli import options
from owl_compress.cli.console import Output
from owl_compress.cli.sheet import Column, Sheet
from owl_compress.consent import Consent
from owl_compress.documents.recipe_fields import Topic
from owl_compress.documents.recovery import RecoveryRecord
from owl_compress.documents.result import Result

RECOVER_TOPICS = (Topic.TEXT, Topic.EVALUATION, Topic.SEED, Topic.MACHINE)
NOT_FOR_RECOVERY = (
    "calib", "samples", "sampling", "data", "stride", "protocol", "agreement", "partial", "strict",
    "revision", "offload",
)  # fmt: skip
PANELS = {Topic.TEXT: "Training text", Topic.EVALUATION: "Training text"}


def recover(
    folder: Annotated[str, options.path_argument("FOLDER", "A folder that compress or run wrote.")],
    data: Annotated[
        str,
        typer.Option(
            help="Text to train on: a file, 'wikitext2', 'ptb', 'c4', 'builtin', or a hub set.",
            rich_help_panel=PANELS[Topic.TEXT],
        ),
    ],
    out: options.Out,
    method: Annotated[
        str, typer.Option(help="'lora', 'masked' (all weights that were kept) or 'bias' (biases and norms).")
    ] = "lora",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a recovery into the same folder was ended.")
    ] = False,
    overwrite: options.Overwrite = False,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    **given: Any,
) -> None:
    """Train a compressed model for a short time, and leave it exactly as compressed as it was."""
    from owl_compress.pipeline.recovering import recover as recovered

    output = Output(as_json=as_json, quiet=quiet)
    result = recovered(
        folder,
        out,
        data,
        method=method,
        resume=resume,
        overwrite=overwrite,
        progress=output.progress,
        say=output.say,
        consent=Consent(trust_remote_code),
        **given,
    )
    if result is None:  # one of several processes that does not lead
        return
    output.answer(result.recoveries[-1].model_dump(mode="json"), recovery_table(result))
    output.say(f"wrote {out}")


def recovery_table(result: Result) -> Sheet:
    """Perplexity before and after each training that the model had."""
    records = result.recoveries
    columns = (
        Column("method", tuple(map(_method, records)), is_text=True),
        Column("loss", tuple(one.loss for one in records), is_text=True),
        Column("tokens", tuple(f"{one.tokens:,}" for one in records)),
        Column("minutes", tuple(f"{one.seconds / 60:.1f}" for one in records)),
        Column("perplexity before", tuple(f"{one.before.perplexity:.3f}" for one in records)),
        Column("after", tuple(f"{one.after.perplexity:.3f}" for one in records)),
    )
    last = records[-1]
    notes = (f"on {last.after.windows} held-out windows of {last.after.seq_len} tokens of {last.after.data}",)
    return Sheet(f"Recovery of {result.model.id}, {result.budgets[0].unit}", columns, notes)


def _method(record: RecoveryRecord) -> str:
    return f"{record.method}, merged" if record.parameters.get("merge") else record.method
