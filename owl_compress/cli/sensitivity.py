"""Sensitivity: what compressing each part of a model alone does to its output."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from owl_compress.cli import options
from owl_compress.cli.console import Output
from owl_compress.cli.damage_tables import part_by_part, sensitivity_table
from owl_compress.consent import Consent
from owl_compress.documents.disk import check_output_file
from owl_compress.documents.recipe_fields import Topic
from owl_compress.documents.sensitivity import SensitivityProfile

if TYPE_CHECKING:  # help must not wait for torch
    from owl_compress.pipeline.profile_subject import ProfileForecast

SENSITIVITY_TOPICS = (
    Topic.BACKEND, Topic.SENSITIVITY, Topic.TEXT, Topic.SHAPE, Topic.SEED, Topic.MACHINE,
)  # fmt: skip
NOT_FOR_PROFILES = ("statistics", "profile", "low", "high", "set", "no_tie", "strict", "activations")


def sensitivity(
    model: options.Model,
    out: options.OptionalOutFile = None,
    extend: Annotated[
        Path | None,
        options.path_option("A profile to add to: what it lacks is measured. -o may be the same file."),
    ] = None,
    resume: options.Resume = False,
    dry_run: options.DryRunOfTrials = False,
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
    options.check_out_named(out, "the profile", dry_run=dry_run)
    texts = [given.get(name, "") for name in ("calib", "damage_data")]
    if out is not None:
        check_output_file(out, inputs=[model, *texts], kind="sensitivity")
    known = SensitivityProfile.read(extend) if extend else None
    profiling = Profiling.of(model, given, known, Consent(trust_remote_code, allow_pickle))
    with joined(profiling.device) as ranks:
        output = output.of_process(leads=ranks.leads)
        if dry_run or out is None:
            output.say(f"loading {model}")
            forecast = profiling.forecast(output.progress)
            output.answer(forecast.as_json(), forecast_lines(forecast))
            return
        is_input = extend is not None and extend.resolve() == out.resolve()
        with kept_until_written(out, resume=resume, is_input=is_input, ranks=ranks) as keeping:
            output.say(keeping.loading(model))
            profile = profiling.run(output.progress, output.say, keeping)
            if ranks.leads and not keeping.is_finished:
                profile.write(out)
    if not ranks.leads:
        return
    output.answer(profile.model_dump(mode="json"), sensitivity_table(profile))
    output.say(keeping.outcome)


def forecast_lines(forecast: "ProfileForecast") -> list[str]:
    """What would be tried, and what it takes."""
    settings, cost = forecast.settings, forecast.cost
    levels = ", ".join(f"{level:.4g}" for level in settings.levels)
    return [
        f"{forecast.n_parts:,} parts, {part_by_part([settings.part])}, at {levels}: {cost.trials:,} trials",
        f"damage ({settings.measure}) on {settings.damage_samples} windows",
        f"as much as {cost.forward_tokens:,.0f} tokens through the model: about {cost.seconds:,.0f} s, "
        "and what the backend takes",
    ]
