"""Whether a plan does less damage than equal shares by more than chance, and what is said of it."""

from collections import Counter
from dataclasses import dataclass
from math import fsum, inf, isfinite, sqrt

from scipy.special import stdtrit

from owl_compress.documents.plan import Plan
from owl_compress.documents.tuning import BesideBaseline
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.pages.words import target_in_words

_CHANCE = 0.05
"""How often a plan no better than equal shares may be taken for better, whichever of the rivals it is."""


@dataclass(frozen=True)
class Damages:
    """Damage of one plan in one round: of each window, in nats."""

    by_window: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over all windows; what is no number is beyond every number."""
        mean = fsum(self.by_window) / len(self.by_window) if all(map(isfinite, self.by_window)) else inf
        return mean if isfinite(mean) else inf

    @property
    def recorded(self) -> float | None:
        """The mean, for a file."""
        return self.mean if isfinite(self.mean) else None


def beside(baseline: Damages, best: Damages, n_rivals: int) -> BesideBaseline:
    """Compare the best of `n_rivals` plans with equal shares, window by window.

    Windows are the sample: the same text is easy or hard for both plans, so that their difference on it
    varies less than either. Student's one-sided test, its level divided by the number of rivals, for the best
    of several is the better by chance (Bonferroni).
    """
    gains = [ours - theirs for ours, theirs in zip(baseline.by_window, best.by_window, strict=True)]
    gain = fsum(gains) / len(gains)
    variance = fsum((one - gain) ** 2 for one in gains) / (len(gains) - 1)
    error = sqrt(variance / len(gains))
    needed = float(stdtrit(len(gains) - 1, 1 - _CHANCE / max(n_rivals, 1)))
    return BesideBaseline(
        damage=best.mean,
        baseline_damage=baseline.mean,
        gain=gain,
        standard_error=error,
        needed=needed,
        is_beyond_chance=gain > needed * error,
    )


def in_words(best: str, found: BesideBaseline, n_windows: int) -> str:
    """What the best plan did beside equal shares, and whether that is enough."""
    sides = (
        f"on {n_windows} windows held apart from everything else {best} did {found.damage:.4g} nats of "
        f"damage and equal shares {found.baseline_damage:.4g}"
    )
    difference = f"{abs(found.gain):.3g} ± {found.standard_error:.2g}"
    allowed = f"{found.needed:.3g} standard errors"
    if found.is_beyond_chance:
        return f"{sides}, a gain of {difference}: chance gives no more than {allowed}"
    if found.gain > 0:
        return f"{sides}, a gain of {difference}: chance may give {allowed}, so equal shares are taken"
    return f"{sides}, a loss of {difference}: equal shares are taken"


def baseline_in_words(plan: Plan) -> str:
    """What equal shares are at this budget: on a grid that does not have it, a mixture of its neighbours."""
    counts = Counter(row.value for row in plan.budgets)
    if len(counts) == 1:
        return "the same for every linear"

    def shown(value: float) -> str:
        if isinstance(plan.grid, KeptOfGrid):
            return plan.grid.shown(value)
        return f"{value:.4g} bits" if plan.unit is Unit.BITS else f"{value:.4g}"

    parts = [f"{count} linears at {shown(value)}" for value, count in sorted(counts.items())]
    return (
        f"no level is {target_in_words(plan)}: what allocator {plan.allocator.name} mixes, {', '.join(parts)}"
    )
