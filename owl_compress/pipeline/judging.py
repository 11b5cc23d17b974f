"""A plan made from damages held to its word: tried beside equal shares, and compared with what was predicted.

Damages of single parts need not add up. So before such a plan is carried out, it is carried out on a copy of
the model, on few windows of statistics, and so are equal shares; their own damage is measured on windows that
neither statistics nor profile saw. The plan is taken where it has less damage by at least the standard error
of the difference over these windows, and equal shares otherwise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from statistics import fmean, stdev

from owl_compress.allocators import EQUAL_SHARES
from owl_compress.data.windows import TokenWindows, sample_windows
from owl_compress.documents.measurements import DamageRecord
from owl_compress.documents.plan import PREDICTED_DAMAGE, Plan
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import Result
from owl_compress.documents.sensitivity import Measure, SensitivityProfile
from owl_compress.errors import RequestError
from owl_compress.importance.reference import DEFAULT_POSITIONS, DenseReference
from owl_compress.pipeline.dividing import divide
from owl_compress.pipeline.profile_subject import Subject
from owl_compress.pipeline.profiling import subject_of
from owl_compress.pipeline.session import Session

CarryOut = Callable[[Session, Plan], Result]
"""Compresses the model of a session in place."""

_OTHER_SEED = 1
"""Added to the seed for windows held apart: the next ones of the same draw would be no others."""

_SIZE = 2
"""Windows to judge on, for each of the profile, and positions likewise."""


@dataclass(frozen=True)
class Judged:
    """The plan to carry out, and what is known of its damage before.

    Attributes:
        plan: that of the allocator, or equal shares.
        profile: that it was made from; None where it was made from none, and nothing is known.
        dense: what the dense model makes of the windows of the profile.
        trial_damage, uniform_damage: of the allocator's plan and of equal shares, on windows held apart.
        standard_error: of their difference.
        is_uniform: whether equal shares were taken.
        notes: for the result.
    """

    plan: Plan
    profile: SensitivityProfile | None = None
    dense: DenseReference | None = None
    trial_damage: float | None = None
    uniform_damage: float | None = None
    standard_error: float | None = None
    is_uniform: bool = False
    notes: tuple[str, ...] = ()

    def told(self, result: Result, session: Session) -> Result:
        """The result with what the session's model, now compressed, has of damage."""
        if self.profile is None or self.dense is None:
            return result
        damage = self.dense.divergence_of(session.loaded.model, session.progress)
        notes = (*result.notes, *self.notes)
        if not isfinite(damage):
            lost = "the damage of the compressed model is no number: it overflows"
            return result.model_copy(update={"notes": (*notes, lost)})
        predicted = self.plan.allocator.parameters.get(PREDICTED_DAMAGE)
        predicted = float(predicted) if isinstance(predicted, int | float) else None
        is_alike = self.profile.measure is Measure.KL and predicted is not None and damage > 0
        record = DamageRecord(
            measure=self.profile.measure,
            predicted=predicted,
            damage=damage,
            ratio=predicted / damage if is_alike and predicted is not None else None,
            trial_damage=self.trial_damage,
            uniform_damage=self.uniform_damage,
            standard_error=self.standard_error,
            carried_out="uniform" if self.is_uniform else "plan",
            windows=self.dense.windows.record,
        )
        return result.model_copy(update={"sensitivity": record, "notes": notes})


def judge(
    session: Session, source: ImportanceReport | SensitivityProfile | None, plan: Plan, carry_out: CarryOut
) -> Judged:
    """Choose between `plan`, made from `source`, and equal shares; of another source there is no choice.

    The model of the session stays as it is.

    Raises:
        RequestError: what carrying out the plan is refused for, or too little text to judge on.
    """
    if not isinstance(source, SensitivityProfile) or not session.request.reads_damage:
        return Judged(plan)
    subject = subject_of(session)
    own = drawn_again(subject, source, session)
    taken = tuple(windows for windows in (subject.statistics, own) if windows is not None)
    record = source.damage_text
    apart = subject.windows_apart(_SIZE * record.sequences, record.seq_len, taken, _OTHER_SEED)
    notes = () if own else (f"damage is measured on {apart.record.source}, not on the text of the profile",)
    dense = _reference(session, source, own or apart)
    judged = Judged(plan, source, dense, notes=notes)
    try:
        uniform = divide(session, source, EQUAL_SHARES)
    except RequestError as error:
        return replace(judged, notes=(*notes, f"there is no plan of equal shares to compare with: {error}"))
    if uniform.budgets == plan.budgets:
        return replace(judged, notes=(*notes, "the plan gives equal shares, and is compared with no other"))
    return _chosen(session, judged, uniform, _reference(session, source, apart, _SIZE), carry_out)


def _chosen(
    session: Session, judged: Judged, uniform: Plan, apart: DenseReference, carry_out: CarryOut
) -> Judged:
    """The plan if it does a copy of the model less damage than equal shares do, by a standard error."""

    def damages_of(plan: Plan) -> list[float]:
        copy = replace(session, calibration=session.profiled_windows).on_a_copy()
        carry_out(copy, plan)
        return apart.divergence_by_window(copy.loaded.model, session.progress)

    of_plan = damages_of(judged.plan)
    try:
        of_equal = damages_of(uniform)
    except RequestError as error:
        return replace(judged, notes=(*judged.notes, f"equal shares could not be tried: {error}"))
    damage, equal = fmean(of_plan), fmean(of_equal)
    error_of_gain = _standard_error_of_gain(of_plan, of_equal)
    tried = replace(
        judged,
        trial_damage=damage if isfinite(damage) else None,
        uniform_damage=equal if isfinite(equal) else None,
        standard_error=error_of_gain,
    )
    if not isfinite(equal) or (isfinite(damage) and equal - damage >= (error_of_gain or 0.0)):
        return tried
    told = (
        f"equal shares are carried out: on text held apart their damage is {equal:.4g} nats, that of "
        f"the plan by {judged.plan.allocator.name} {damage:.4g}"
    )
    if damage < equal and error_of_gain is not None:
        told += f", which is less by no more than the standard error of the difference ({error_of_gain:.2g})"
    return replace(tried, plan=uniform, is_uniform=True, notes=(*judged.notes, told))


def _standard_error_of_gain(of_plan: Sequence[float], of_equal: Sequence[float]) -> float | None:
    """Of the mean difference over windows; None where there is one window, or a damage is no number."""
    gains = [equal - own for own, equal in zip(of_plan, of_equal, strict=True)]
    if len(gains) < 2 or not all(map(isfinite, gains)):
        return None
    return float(stdev(gains) / len(gains) ** 0.5)


def _reference(
    session: Session, profile: SensitivityProfile, windows: TokenWindows, size: int = 1
) -> DenseReference:
    """The dense model on `windows`, at `size` times as many positions as damages are of."""
    return DenseReference.of(
        session.loaded.model,
        session.structure,
        windows,
        session.request.device,
        n_positions=size * (profile.positions or DEFAULT_POSITIONS),
        batch_size=session.recipe.batch_size,
        progress=session.progress,
    )


def drawn_again(subject: Subject, profile: SensitivityProfile, session: Session) -> TokenWindows | None:
    """The windows that the damages of the profile are of; None where the text at hand is another."""
    record = profile.damage_text
    if record.source != subject.text.source:
        return None
    for taken in (subject.statistics, _statistics_of(profile, session)):
        if taken is None:
            continue
        seeded = replace(
            subject, recipe=subject.recipe.with_options({"seed": record.seed, "bos": record.bos})
        )
        try:
            windows = seeded.windows_apart(record.sequences, record.seq_len, (taken,))
        except RequestError:
            continue
        if windows.record.token_ids_sha256 == record.token_ids_sha256:
            return windows
    return None


def _statistics_of(profile: SensitivityProfile, session: Session) -> TokenWindows | None:
    """The windows that the backend saw for the profile; None where it saw none, or the text is another."""
    record, recipe = profile.statistics, session.recipe
    if record is None or recipe.damage_data is not None:
        return None
    try:
        windows = sample_windows(
            session.loaded.tokenizer,
            session.text_of_damage,
            samples=record.sequences,
            seq_len=record.seq_len,
            sampling=record.sampling,
            seed=record.seed,
            bos=record.bos,
        )
    except RequestError:
        return None
    return windows if windows.record.token_ids_sha256 == record.token_ids_sha256 else None
