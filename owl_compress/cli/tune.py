"""Tuning: what several allocators make of a budget, tried on the model, and the best of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from owl_compress.cli import options
from owl_compress.cli.console import Output
from owl_compress.cli.sheet import Column, Sheet
from owl_compress.consent import Consent
from owl_compress.documents.disk import check_output_file, write_together
from owl_compress.documents.recipe_fields import Topic
from owl_compress.documents.tuning import TuningDocument
from owl_compress.pages.tuning_words import fate_in_words, ranked, tried_in_words
from owl_compress.pages.words import number_format

if TYPE_CHECKING:  # a refusal must not wait for torch
    from owl_compress.pipeline.tuning import Scheme

TUNE_TOPICS = (
    Topic.BUDGET, Topic.ALLOCATOR, Topic.SHAPE, Topic.BACKEND, Topic.SENSITIVITY, Topic.TEXT, Topic.SEED,
    Topic.MACHINE,
)  # fmt: skip
NOT_FOR_TUNING = ("allocator", "solver")


def tune(
    model: options.Model,
    out: options.OptionalOutFile = None,
    dry_run: options.DryRunOfTrials = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    **given: Any,
) -> None:
    """Choose allocator, metric and options by trying them on the model, and write the plan and why."""
    from owl_compress.pipeline.methods import DEFAULT_BACKEND
    from owl_compress.pipeline.processes import joined
    from owl_compress.pipeline.tuning import Tuning, scheme_of
    from owl_compress.pipeline.tuning import tune as tuned

    output = Output(as_json=as_json, quiet=quiet)
    options.check_out_named(out, "the plan file", dry_run=dry_run)
    if out is not None:
        inputs = [model, *(given.get(name, "") for name in ("calib", "damage_data", "profile"))]
        check_output_file(out, inputs=inputs, kind="plan")
        check_output_file(beside(out), inputs=inputs, kind="tuning")
    asked = {"model": model, "backend": DEFAULT_BACKEND} | given
    tuning = Tuning.of(asked, Consent(trust_remote_code, allow_pickle))
    with joined(tuning.request.device) as ranks:
        output = output.of_process(leads=ranks.leads)
        output.say(f"loading {model}")
        session = tuning.session(output.progress, output.say)
        if dry_run or out is None:
            scheme = scheme_of(session)
            output.answer(scheme.as_json(), scheme_table(scheme))
            return
        found = tuned(session)
    if not ranks.leads:
        return
    write_together({beside(out): found.document.to_json(), out: found.plan.to_json()})
    answer = {"plan": found.plan.model_dump(mode="json"), "tuning": found.document.model_dump(mode="json")}
    output.answer(answer, tuning_table(found.document))
    output.say(f"wrote {out} and {beside(out)}")


def beside(plan: Path) -> Path:
    """Where everything that was tried is told: beside the plan."""
    return plan.with_name(f"{plan.stem}.tuning.json")


def tuning_table(document: TuningDocument) -> Sheet:
    """Every candidate with its damage in each round, the plan that was taken first."""
    rows = ranked(document)
    damages = [value for one in rows for value in one.damage if value is not None]
    form = number_format(damages)
    columns = [Column("candidate", tuple(one.name for one in rows), is_text=True)]
    for number in range(len(document.rounds)):
        cells = tuple(_damage(one.damage[number : number + 1], form) for one in rows)
        columns.append(Column(f"round {number + 1}", cells, is_optional=number + 1 < len(document.rounds)))
    columns.append(Column("what became of it", tuple(map(fate_in_words, rows)), is_text=True))
    return Sheet(
        f"Plans tried for {document.model.id} with {document.backend.name}",
        tuple(columns),
        tuple(tried_in_words(document)),
    )


def _damage(values: Sequence[float | None], form: str) -> str:
    return "".join("no number" if value is None else format(value, form) for value in values)


def _settings(scheme: "Scheme", allocator: str) -> str:
    """The values that each option has among the candidates of one allocator."""
    members = [one for one in scheme.candidates if one.allocator.name == allocator]
    names = [name for name in members[0].options if name in members[0].varied]
    values = {name: dict.fromkeys(str(one.options[name]) for one in members) for name in names}
    return "; ".join(f"{name} {', '.join(found)}" for name, found in values.items())


def scheme_table(scheme: "Scheme") -> Sheet:
    """The candidates, and what trying them costs at most."""
    names = [one.allocator.name for one in scheme.candidates]
    allocators = list(dict.fromkeys(names))
    columns = (
        Column("allocator", tuple(allocators), is_text=True),
        Column("plans", tuple(str(names.count(name)) for name in allocators)),
        Column("settings", tuple(_settings(scheme, name) for name in allocators), is_text=True),
    )
    return Sheet("Plans to try", columns, (scheme.in_words,))
