"""Recovery: a short training of what was compressed."""

from typing import Annotated, Any

import typer

from owl_compress.cli import options
from owl_compress.cli.console import Output
from owl_compress.cli.recovery_table import recovery_table
from owl_compress.consent import Consent
from owl_compress.documents.recipe_fields import Topic

RECOVER_TOPICS = (Topic.TEXT, Topic.EVALUATION, Topic.SEED, Topic.MACHINE)
NOT_FOR_RECOVERY = (
    "calib", "samples", "sampling", "data", "stride", "protocol", "agreement", "partial", "strict",
    "revision", "offload", "activations",
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
    resume: options.Resume = False,
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
