"""The best of several plans, by the damage that each does to a copy of the model, on text held apart.

Damage is KL(dense ‖ compressed) of the next token, not the loss on the text: it orders plans of one budget by
a few hundred tokens, for what the dense model finds hard is hard for every plan and drops out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from pydantic import JsonValue

from owl_compress.compression.account import method_record
from owl_compress.compression.demands import wants_text
from owl_compress.data.windows import TokenWindows, TooShortError
from owl_compress.documents.plan import CHOSEN_ALLOCATOR, AllocatorRecord, LinearBudget, Plan
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.documents.tuning import BesideBaseline, Fate, TriedCandidate, TuningDocument, TuningRound
from owl_compress.documents.versions import versions
from owl_compress.errors import RequestError
from owl_compress.memory import memory_errors
from owl_compress.pipeline.dividing import divide
from owl_compress.pipeline.feasibility import check_plan, check_request
from owl_compress.pipeline.judging import CarryOut, drawn_again
from owl_compress.pipeline.methods import AUTO
from owl_compress.pipeline.profiling import subject_of
from owl_compress.pipeline.reports import measured_report, outlined
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.tuning_candidates import Candidate
from owl_compress.pipeline.tuning_choice import baseline_in_words, beside, in_words
from owl_compress.pipeline.tuning_rounds import judging_windows, rounds_of
from owl_compress.pipeline.tuning_scheme import Scheme, scheme_of
from owl_compress.pipeline.tuning_trials import Contest, Contestant
from owl_compress.pipeline.windows import held_apart

_APART_SEED = 2
"""Added to the seed for windows to judge on: those of a profile, and of its own judging, are others."""


@dataclass(frozen=True)
class Tuned:
    """The plan that was taken, what was tried, and what the plans were made from.

    Attributes:
        plan: see there.
        document: every candidate, and why the plan was taken.
        report: what was measured; None if nobody looks at it.
        profile: that was given, or measured; None if there is none.
    """

    plan: Plan
    document: TuningDocument
    report: ImportanceReport | None = None
    profile: SensitivityProfile | None = None

    @property
    def source(self) -> ImportanceReport | SensitivityProfile | None:
        """What the plan was made from; None if from names and sizes alone."""
        known = (self.report, self.profile)
        return next((one for one in known if one and one.fingerprint == self.plan.report), None)

    @property
    def in_words(self) -> str:
        """Whose plan was taken, and why."""
        return f"allocator {AUTO} took {self.document.chosen.name}: {self.document.why}"


def search(session: Session, carry_out: CarryOut) -> Tuned:
    """Try the candidates of the request, and take the best plan, or equal shares if that may be chance.

    The model of the session stays as it is.

    Raises:
        RequestError: a budget that cannot be met, a cost that pays for no trial, too little text to hold
            apart, or not one plan that can be carried out.
    """
    session.check_fresh()
    with memory_errors("trying plans"):
        check_request(session)
        scheme = scheme_of(session)
        session.announce(scheme.in_words)
        judging = _judging(session, scheme)  # too little text is told before anything is measured
        sources = _Sources.of(session, scheme)
        drafts = _drafts(session, scheme.candidates, sources)
        made = [draft.contestant for draft in drafts if draft.contestant is not None]
        if not made:
            raise RequestError(f"no candidate has a plan for this budget: {drafts[0].reason}")
        baseline = next((draft.contestant for draft in drafts if draft.candidate.is_baseline), None)
        contest = Contest(session, carry_out, scheme.statistics, judging, scheme.positions, baseline)
        rounds = rounds_of(len(made), scheme.means) if len(made) > 1 else ()
        choice = _choice(contest.run(made, rounds), baseline, rounds)
        plan = _recorded(session, choice, len(drafts), len(made))
        document = _document(scheme, judging, drafts, baseline, rounds, choice, plan)
        return Tuned(plan, document, sources.report, sources.profile)


@dataclass(frozen=True)
class _Sources:
    """What plans are made from; `outline` has names and sizes for those who look at nothing else."""

    report: ImportanceReport | None
    profile: SensitivityProfile | None
    outline: ImportanceReport

    @classmethod
    def of(cls, session: Session, scheme: Scheme) -> "_Sources":
        """Measured, as far as a candidate looks at it."""
        is_read = any(one.allocator.reads_scores for one in scheme.candidates)
        report = measured_report(session) if is_read else None
        profile = session.request.profile
        if scheme.profiling is not None:
            profile = subject_of(session).profiled(scheme.profiling, told=session.announce)
        return cls(report, profile, outlined(session))

    def of_candidate(self, candidate: Candidate) -> ImportanceReport | SensitivityProfile:
        """What this one reads."""
        if candidate.reads_damage and self.profile is not None:
            return self.profile
        return self.report if candidate.allocator.reads_scores and self.report is not None else self.outline


def _judging(session: Session, scheme: Scheme) -> TokenWindows:
    """Windows that share nothing with those of the calibration, nor with those of a profile."""
    taken = [
        windows for windows in (session.calibration, _of_profile(session, scheme)) if windows is not None
    ]
    count, length = judging_windows(scheme.rounds), scheme.pricing.judging_len
    try:
        return held_apart(
            session.loaded,
            session.structure,
            session.text_of_damage,
            taken,
            samples=count,
            seq_len=length,
            seed=session.recipe.seed + _APART_SEED,
            bos=session.recipe.bos,
            progress=session.progress,
        )
    except TooShortError as error:
        raise RequestError(
            f"{session.text_of_damage.source} is too short for {count} windows of {length} tokens to judge "
            f"plans on, {count // scheme.means.judging_windows} for each of --damage-samples: give more "
            "text, or fewer of these or a smaller --damage-len"
        ) from error


def _of_profile(session: Session, scheme: Scheme) -> TokenWindows | None:
    """The windows that the damages of a profile are, or will be, of."""
    given = session.request.profile
    if given is not None:
        return drawn_again(subject_of(session), given, session)
    return subject_of(session).damage_windows(scheme.profiling) if scheme.profiling else None


@dataclass(frozen=True)
class _Draft:
    """What a candidate makes of the budget: a plan, the name of who made the same, or why there is none."""

    candidate: Candidate
    contestant: Contestant | None = None
    same_as: str | None = None
    reason: str | None = None


def _drafts(session: Session, candidates: Sequence[Candidate], sources: _Sources) -> list[_Draft]:
    """The plan of each candidate; one that is there already is tried once."""
    drafts: list[_Draft] = []
    known: dict[tuple[LinearBudget, ...], str] = {}
    for one in candidates:
        try:
            plan = divide(session, sources.of_candidate(one), one.allocator)
            check_plan(session, plan)
        except RequestError as error:
            drafts.append(_Draft(one, reason=str(error)))
            continue
        same = known.setdefault(plan.budgets, one.name)
        is_new = same == one.name
        drafts.append(_Draft(one, Contestant(one.name, plan)) if is_new else _Draft(one, same_as=same))
    return drafts


@dataclass(frozen=True)
class _Choice:
    """Whose plan is taken, how it stands beside equal shares (None where they are no choice), and why."""

    chosen: Contestant
    beside: BesideBaseline | None
    why: str


def _choice(
    ranked: Sequence[Contestant], baseline: Contestant | None, rounds: Sequence[TuningRound]
) -> _Choice:
    """The best plan, unless what it gains over equal shares may be chance.

    Raises:
        RequestError: the damage of none is a number.
    """
    first = ranked[0]
    if not rounds:
        return _Choice(first, None, f"every candidate gives the plan of {first.name}")
    if not isfinite(first.last):
        raise RequestError(
            "every plan damages the model beyond numbers, or its data type overflows: try --dtype float32, "
            "or a budget that keeps more"
        )
    rivals = [one for one in ranked if one is not baseline]
    if baseline is None or baseline not in ranked or not isfinite(baseline.last):
        reason = "there are none" if baseline is None else baseline.reason or "their damage is no number"
        return _Choice(first, None, f"{first.name} did least damage; equal shares are no choice: {reason}")
    if not rivals or not isfinite(rivals[0].last):
        return _Choice(baseline, None, "no plan but equal shares can be carried out")
    best = rivals[0]
    found = beside(baseline.damages[-1], best.damages[-1], len(rivals))
    why = in_words(best.name, found, rounds[-1].judging_windows)
    return _Choice(best if found.is_beyond_chance else baseline, found, why)


def _recorded(session: Session, choice: _Choice, n_candidates: int, n_plans: int) -> Plan:
    """The plan, which says who made it and how it was chosen."""
    plan = choice.chosen.plan
    made_by = plan.allocator
    parameters: dict[str, JsonValue] = {CHOSEN_ALLOCATOR: made_by.name, **made_by.parameters}
    parameters |= {"candidates": n_candidates, "plans": n_plans, "backend": session.recipe.backend}
    if (found := choice.beside) is not None:
        parameters |= {"best_damage": found.damage, "uniform_damage": found.baseline_damage}
    return plan.model_copy(update={"allocator": AllocatorRecord(name=AUTO, parameters=parameters)})


def _document(
    scheme: Scheme,
    judging: TokenWindows,
    drafts: Sequence[_Draft],
    baseline: Contestant | None,
    rounds: Sequence[TuningRound],
    choice: _Choice,
    plan: Plan,
) -> TuningDocument:
    session = scheme.pricing.session
    return TuningDocument(
        model=session.identity,
        backend=method_record(session.request.backend),
        unit=plan.unit,
        target=plan.asked,
        grid=plan.grid,
        statistics=scheme.statistics.record if wants_text(scheme.pricing.backend) else None,
        judging=judging.record,
        positions=scheme.positions,
        rounds=tuple(rounds),
        candidates=tuple(_told(draft, choice.chosen, baseline) for draft in drafts),
        baseline=baseline_in_words(baseline.plan) if baseline else "there is none",
        comparison=choice.beside,
        why=choice.why,
        forward_tokens=scheme.cost_of(rounds),
        plan=plan.fingerprint,
        versions=versions(),
    )


def _told(draft: _Draft, chosen: Contestant, baseline: Contestant | None) -> TriedCandidate:
    """What became of a candidate."""
    one, contestant = draft.candidate, draft.contestant
    fate: Fate = "same" if draft.same_as else "refused"
    if contestant is not None and contestant.reason is None:
        fate = "chosen" if contestant is chosen else "baseline" if contestant is baseline else "beaten"
    return TriedCandidate(
        name=one.name,
        allocator=one.allocator.name,
        options=dict(one.options),
        fate=fate,
        damage=tuple(damage.recorded for damage in contestant.damages) if contestant else (),
        same_as=draft.same_as,
        reason=draft.reason or (contestant.reason if contestant else None),
    )
