"""Refinement: a plan made better by the damage that its parts do where it stands."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from owl_compress.cli import options
from owl_compress.cli.console import Output
from owl_compress.cli.damage_tables import part_by_part
from owl_compress.cli.sheet import Column, Sheet
from owl_compress.cli.tables import plan_table
from owl_compress.consent import Consent
from owl_compress.documents.disk import check_output_file
from owl_compress.documents.plan import Plan
from owl_compress.documents.recipe_fields import Topic
from owl_compress.documents.units import KeptOfGrid
from owl_compress.options import build_from, option, options_of
from owl_compress.pages.words import number_format

if TYPE_CHECKING:  # a refusal must not wait for torch
    from owl_compress.pipeline.refining import Attempt, Refinement, RefinementOptions

REFINE_TOPICS = (Topic.BACKEND, Topic.SENSITIVITY, Topic.TEXT, Topic.SEED, Topic.MACHINE)
_NUMBERED = {"swaps": "round", "evo": "generation"}
_GAINED_NOTHING = (
    ": it is the plan as it came, which does not say how it was refined; drop --resume to refine it again"
)
NOT_FOR_REFINEMENT = ("profile", "levels", "measure", "strict", "activations")


@dataclass(frozen=True)
class SearchOptions:
    """How better plans are looked for, as a user says it."""

    method: Literal["swaps", "evo"] = option(
        "swaps", "'swaps' (default): the best few moves a round; 'evo': evolution, costly."
    )
    pairs: int = option(3, "With swaps: parts that trade levels in a round, two for each pair.", at_least=1)
    step: float | None = option(
        None, "Off a grid: how far a part moves at a time; default 0.05 of density, 0.1 of width.", above=0
    )
    generations: int | None = option(
        None, "With evo: how many; default as many as --max-cost allows.", at_least=1
    )
    offspring: int = option(16, "With evo: plans in each generation.", at_least=1)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "SearchOptions":
        """The options among those that the user typed.

        Raises:
            RequestError: a value that cannot be meant.
        """
        found: SearchOptions = build_from(cls, "refine", given)
        return found

    @property
    def settled(self) -> "RefinementOptions":
        """The same for the refinement itself."""
        from owl_compress.pipeline.refining import RefinementOptions

        return RefinementOptions(**asdict(self))


def refine(
    model: options.Model,
    plan: Annotated[Path, options.path_option("The plan to refine, of any allocator.")],
    out: options.OutFile,
    resume: options.Resume = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    **given: Any,
) -> None:
    """Make a plan better by measured damage: parts trade levels, and a gate keeps what lowers it."""
    from owl_compress.pipeline.methods import DEFAULT_BACKEND
    from owl_compress.pipeline.processes import joined
    from owl_compress.pipeline.refining import Refining
    from owl_compress.pipeline.unfinished import kept_until_written

    output = Output(as_json=as_json, quiet=quiet)
    texts = [given.get(name, "") for name in ("calib", "damage_data")]
    check_output_file(out, inputs=[model, plan, *texts], kind="plan")
    source = Plan.read(plan)
    own = {one.name for one in options_of(SearchOptions)}
    search = SearchOptions.of(given).settled
    fixed = {"model": model, "plan": str(plan), "backend": DEFAULT_BACKEND}
    asked = fixed | {name: value for name, value in given.items() if name not in own}
    refining = Refining.of(asked, search, Consent(trust_remote_code, allow_pickle))
    with joined(refining.request.device) as ranks:
        output = output.of_process(leads=ranks.leads)
        with kept_until_written(out, resume=resume, ranks=ranks) as keeping:
            if keeping.is_finished:
                done = refining.finished(out, output.progress)
                output.answer({"plan": done.model_dump(mode="json")}, plan_table(done))
                is_same = done.fingerprint == source.fingerprint
                output.say(f"{keeping.outcome}{_GAINED_NOTHING if is_same else ''}")
                return
            output.say(keeping.loading(model))
            found = refining.run(output.progress, output.say, keeping)
            if ranks.leads:
                found.plan.write(out)
    if not ranks.leads:
        return
    output.answer(found.as_json(), refinement_table(source, found))
    if not found.is_better:
        output.say("nothing was gained: the plan is written as it came")
    output.say(keeping.outcome)


def refinement_table(source: Plan, found: "Refinement") -> Sheet:
    """What was tried, what was expected of it and what came of it."""
    rows = [(attempt, move) for attempt in found.attempts for move in attempt.moves]
    damages = [value for one in found.attempts for value in (*one.predicted, *one.measured)]
    form = number_format([*damages, *found.damage])

    def once(cell: Sequence[str]) -> tuple[str, ...]:
        """What is said of all moves of an attempt, beside the first of them."""
        return tuple(
            text if place == 0 else ""
            for one, text in zip(found.attempts, cell, strict=True)
            for place in range(len(one.moves))
        )

    columns = (
        Column(_NUMBERED[found.method], once([str(one.number) for one in found.attempts])),
        Column("part", tuple(move.part for _, move in rows), is_text=True),
        Column("from", tuple(_level(source, move.before) for _, move in rows)),
        Column("to", tuple(_level(source, move.after) for _, move in rows)),
        Column("expected", once([_change(one.predicted, form) for one in found.attempts])),
        Column("measured", once([_change(one.measured, form) for one in found.attempts])),
        Column("kept", once([_kept(one) for one in found.attempts]), is_text=True),
    )
    notes = (
        f"damage (kl) on text held apart: {_change(found.damage, form)}",
        f"it ended as {found.ended}" if found.ended else "it ended",
        f"cost: {found.forward_tokens:,.0f} tokens through the model",
    )
    title = f"Refinement of the plan by {source.allocator.name}, {part_by_part([found.part])}"
    return Sheet(title, columns if rows else (), notes)


def _level(plan: Plan, level: float) -> str:
    if isinstance(plan.grid, KeptOfGrid):
        return plan.grid.shown(level)
    return f"{level:.4g}"


def _change(values: tuple[float, float], form: str) -> str:
    before, after = (format(value, form) for value in values)
    return f"{before} -> {after}"


def _kept(attempt: "Attempt") -> str:
    if attempt.not_carried_out:
        return "no, carried out otherwise"
    return "yes" if attempt.is_kept else "no"
