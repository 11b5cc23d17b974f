"""A plan that is there made better by measured damage, with the model, the backend and texts of a request."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from owl_compress.arguments import checked
from owl_compress.consent import NO_CONSENT, Consent
from owl_compress.data.text import Chats, Text
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.notes import NO_NOTES, Notes
from owl_compress.documents.option_names import option_name
from owl_compress.documents.plan import Plan
from owl_compress.documents.quantities import n_tokens
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.recipe_fields import DEFAULT_MEASURE_SAMPLES
from owl_compress.errors import RequestError
from owl_compress.memory import memory_errors
from owl_compress.models.limits import resolve_seq_len
from owl_compress.pipeline.facts import facts
from owl_compress.pipeline.feasibility import check_plan
from owl_compress.pipeline.finished_refinement import check_told, check_told_texts
from owl_compress.pipeline.profile_checks import by_block
from owl_compress.pipeline.profile_settings import DEFAULT_DAMAGE_LEN, DEFAULT_DAMAGE_SAMPLES
from owl_compress.pipeline.recipe_texts import read_damage_text
from owl_compress.pipeline.request import Request
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.unfinished import NOTHING_KEPT, Keeping
from owl_compress.pipeline.windows import held_apart
from owl_compress.progress import SILENT, Progress
from owl_compress.refinement.refined import Attempt, Refinement, RefinementOptions, RefinementWindows
from owl_compress.refinement.refinement import refine_plan
from owl_compress.refinement.workshop import WorkOptions

__all__ = ["Attempt", "DamageText", "Refinement", "RefinementOptions", "Refining", "refine"]

NotesFor = Callable[[RefinementWindows], Notes]
"""Where notes are taken of a refinement on these windows."""

_OWN = ("part", "damage_samples", "damage_len", "damage_data", "positions", "max_cost")
"""Options that say how damage is measured, under their names in a recipe."""

_BY_OTHERS = "refine the plan with {able}, and carry it out with this one"

_GATE_SEED = 1
"""Added to the seed for the windows of the gate."""

_GATE_SIZE = 2
"""Windows of the gate for each that moves are chosen on: what it lets through is meant to last."""


@dataclass(frozen=True)
class DamageText:
    """Where windows of damage come from: as many as `samples` to choose moves on, twice as many for the gate.

    Attributes:
        samples: windows that moves are chosen on.
        length: tokens of each; None for 128, or the model's maximum if that is less.
        text: that they are drawn from; None for that of the calibration.
    """

    samples: int = DEFAULT_DAMAGE_SAMPLES
    length: int | None = None
    text: Text | Chats | None = None


@checked
def refine(
    session: Session,
    options: RefinementOptions | None = None,
    damage: DamageText | None = None,
    notes_for: NotesFor = lambda _: NO_NOTES,
) -> Refinement:
    """Make the plan of the session better by measured damage, at the same budget.

    The session is of a recipe with a plan; its model is unchanged afterwards. The plan is replaced only by
    one that, carried out on a copy, does less damage on windows that neither the backend saw nor the moves
    were chosen on. See `owl_compress.refinement.refinement.refine_plan`. `notes_for` says where notes are
    taken of what is done on these windows.

    Raises:
        RequestError: a request without a plan, a plan that cannot be carried out or in which nothing can
            move, a backend that writes whole checkpoints, or too little text.
    """
    options, damage = options or RefinementOptions(), damage or DamageText()
    plan, backend = _plan_of(session.request), by_block(session.request.backend, _BY_OTHERS)
    session.check_fresh()
    plan.check_fits(session.structure.linear_sizes)
    check_plan(session, plan)
    with memory_errors("refining the plan"):
        windows = _windows(session, damage)
        return refine_plan(
            session.loaded.model,
            plan,
            backend,
            windows,
            replace(options, fixed=options.fixed | set_by_hand(plan)),
            WorkOptions(
                device=session.request.device,
                batch_size=session.recipe.batch_size,
                statistics=session.request.statistics,
                progress=session.progress,
                announce=lambda tokens, seconds: session.announce(_cost_in_words(tokens, seconds)),
                notes=notes_for(windows),
            ),
            structure=session.structure,
        )


def _plan_of(request: Request) -> Plan:
    plan = request.plan
    if plan is None:
        raise RequestError("the request has no plan to refine: name one, as plan in its recipe")
    return plan


def set_by_hand(plan: Plan) -> frozenset[str]:
    """The linears whose budgets were pinned when the plan was made.

    Raises:
        RequestError: what the plan says of that are no pins.
    """
    pins = plan.allocator.parameters.get("set") or {}
    if not isinstance(pins, Mapping):
        raise RequestError(
            f"the plan says that it was made with set {pins!r}, which are no names with values: mend "
            "or remove that"
        )
    patterns = list(pins)
    return frozenset(
        budget.name
        for budget in plan.budgets
        for pattern in patterns
        if fnmatchcase(budget.name, pattern) or fnmatchcase(budget.block, pattern)
    )


def _windows(session: Session, damage: DamageText) -> RefinementWindows:
    """Statistics, windows to choose on, and windows of the gate: each apart from those before."""
    length = resolve_seq_len(damage.length, session.loaded.model.config, DEFAULT_DAMAGE_LEN, "--damage-len")
    seed = session.recipe.seed
    statistics = session.calibration
    taken = [statistics] if statistics is not None else []

    def drawn(samples: int, further_seed: int) -> TokenWindows:
        windows = held_apart(
            session.loaded,
            session.structure,
            damage.text or session.text_of_damage,
            taken,
            samples=samples,
            seq_len=length,
            seed=seed + further_seed,
            bos=session.recipe.bos,
            progress=session.progress,
        )
        taken.append(windows)
        return windows

    return RefinementWindows(
        statistics, drawn(damage.samples, 0), drawn(_GATE_SIZE * damage.samples, _GATE_SEED)
    )


def _cost_in_words(tokens: float, seconds: float) -> str:
    return (
        f"at most {tokens:,.0f} tokens through the model (--max-cost): about {seconds:,.0f} s from here on, "
        "and what the backend takes for the moves"
    )


@dataclass(frozen=True)
class Refining:
    """A refinement that options ask for, checked before the model is loaded."""

    request: Request
    options: RefinementOptions
    damage: DamageText

    @classmethod
    def of(
        cls, given: Mapping[str, Any], options: RefinementOptions, consent: Consent = NO_CONSENT
    ) -> "Refining":
        """What options ask for, under their names in a recipe; model, plan and backend are among them.

        Raises:
            RequestError: what `Request.of` refuses, or a text that cannot be read.
        """
        asked = Recipe.from_options(given, "options")  # refuses values that cannot be meant
        plain = {name: value for name, value in given.items() if name not in _OWN}
        recipe = Recipe.from_options({"samples": DEFAULT_MEASURE_SAMPLES} | plain, "options")
        request = Request.of(recipe, consent=consent)
        by_block(request.backend, _BY_OTHERS)
        text = None
        if asked.damage_data is not None or request.backend.statistic is None:
            text = read_damage_text(asked)
        options = replace(
            options,
            part=asked.part,
            seed=asked.seed,
            positions=asked.positions or options.positions,
            max_cost=float(n_tokens(asked.max_cost)) if asked.max_cost else None,
        )
        damage = DamageText(asked.damage_samples or DEFAULT_DAMAGE_SAMPLES, asked.damage_len, text)
        return cls(request, options, damage)

    def run(
        self,
        progress: Progress = SILENT,
        told: Callable[[str], None] = lambda _: None,
        keeping: Keeping = NOTHING_KEPT,
    ) -> Refinement:
        """Load the model and refine the plan, as far as that is not done: what is, is kept by `keeping`.

        Raises:
            RequestError: see `Session.open` and `refine`; or what is kept is of something else.
        """
        with memory_errors("refining the plan"):
            session = Session.open(self.request, progress=progress, announce=told)
            return refine(
                session,
                self.options,
                self.damage,
                lambda windows: keeping.notes(lambda: self._depends_on(session, windows)),
            )

    def _depends_on(self, session: Session, windows: RefinementWindows) -> dict[str, str]:
        texts = {"calibration": windows.statistics, "damage": windows.choosing, "gate": windows.gate}
        found = facts(session.loaded, session.recipe.settings, session.request.device, texts)
        found |= {f"--{name}": value for name, value in self._search.items()}
        return found | {"the plan": _plan_of(self.request).fingerprint[:16]}

    @property
    def _search(self) -> dict[str, str]:
        """How better plans are looked for, but for what is left open."""
        options = {one.name: getattr(self.options, one.name) for one in fields(self.options)}
        return {
            option_name(name): str(value)
            for name, value in options.items()
            if value is not None and name != "fixed"
        }

    def finished(self, out: Path, progress: Progress = SILENT) -> Plan:
        """The plan that is there, if it is what is asked for; the model is loaded to see which texts that is.

        Where nothing was gained it is the one that is refined, and tells no more.

        Raises:
            RequestError: naming what differs.
        """
        done, source = Plan.read(out), _plan_of(self.request)
        if done.fingerprint == source.fingerprint:
            return done
        check_told(out, done, self.request, self.options)
        with memory_errors("refining the plan"):
            session = Session.open(self.request, progress=progress)
            check_told_texts(out, done, _windows(session, self.damage).record)
        return done
