"""Sensitivity: what compressing each part of a model alone does to its output."""

from pathlib import Path
from typing import Annotated, Any

from owl_compress.cli import options
from owl_compress.cli.console import Output
from owl_compress.cli.damage_tables import sensitivity_table
from owl_compress.consent import Consent
from owl_compress.documents.disk import check_output_file
from owl_compress.documents.recipe_fields import Topic
from owl_compress.documents.sensitivity import SensitivityProfile

SENSITIVITY_TOPICS = (
    Topic.BACKEND, Topic.SENSITIVITY, Topic.TEXT, Topic.SHAPE, Topic.SEED, Topic.MACHINE,
)  # fmt: skip
NOT_FOR_PROFILES = ("statistics", "profile", "low", "high", "set", "no_tie", "strict", "activations")


def sensitivity(
    model: options.Model,
    out: options.OutFile,
    extend: Annotated[
        Path | None,
        options.path_option("A profile to add to: what it lacks is measured. -o may be the same file."),
    ] = None,
    resume: options.Resume = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    **given: Any,
) -> None:
    """Measure the damage of compressing each part of a model alone, and write the profile."""
    from owl_compress.pipeline.processes import joined
    from owl_compress.pipeline.profiling import Profiling
    from owl_compress.pipeline.unfinished import kept_until_written

    output = Output(as_json=as_json, quiet=quiet)
    texts = [given.get(name, "") for name in ("calib", "damage_data")]
    check_output_file(out, inputs=[model, *texts], kind="sensitivity")
    known = SensitivityProfile.read(extend) if extend else None
    profiling = Profiling.of(model, given, known, Consent(trust_remote_code, allow_pickle))
    is_input = extend is not None and extend.resolve() == out.resolve()
    with joined(profiling.device) as ranks:
        output = output.of_process(leads=ranks.leads)
        with kept_until_written(out, resume=resume, is_input=is_input, ranks=ranks) as keeping:
            output.say(keeping.loading(model))
            profile = profiling.run(output.progress, output.say, keeping)
            if ranks.leads and not keeping.is_finished:
                profile.write(out)
    if not ranks.leads:
        return
    output.answer(profile.model_dump(mode="json"), sensitivity_table(profile))
    output.say(keeping.outcome)
