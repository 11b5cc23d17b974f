"""What is going to be tried, on which text, and what that costs: as much as the means allow."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from owl_compress.compression.contract import Backend
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.quantities import n_tokens
from owl_compress.documents.tuning import TuningRound
from owl_compress.errors import RequestError
from owl_compress.importance.reference import DEFAULT_POSITIONS
from owl_compress.models.limits import resolve_seq_len
from owl_compress.pipeline.methods import AUTO
from owl_compress.pipeline.profile_checks import by_block
from owl_compress.pipeline.profile_settings import (
    DEFAULT_DAMAGE_LEN,
    DEFAULT_DAMAGE_SAMPLES,
    ProfileSettings,
)
from owl_compress.pipeline.profiling import check_given, subject_of
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.tuning_candidates import Candidate, thinned
from owl_compress.pipeline.tuning_rounds import Means, judging_windows, rounds_of
from owl_compress.refinement.workshop import passes_of

_SETTINGS_OF_EACH = (None, 3, 2, 1, 0)
"""How many settings of each allocator are tried, the more the better; see `thinned`."""

_OF_PROFILES_ALONE = ("part", "levels", "measure")
"""Options that say how a profile is measured, and nothing else: whoever gives one wants a profile."""

_BROUGHT_IN_BY = "which --profile brings in, or a --max-cost that covers measuring one"

_SHARES_OF_WINDOWS = (1, 2, 4, 8, 16)
"""By how much fewer windows the backend may see."""


@dataclass(frozen=True)
class Pricing:
    """What trying costs, in tokens through the model.

    Attributes:
        session: see there.
        backend: its backend.
        windows: the most that the backend may see.
        judging_len: tokens of a window to judge on.
    """

    session: Session
    backend: Backend
    windows: TokenWindows
    judging_len: int

    @classmethod
    def of(cls, session: Session) -> "Pricing":
        """The prices for a session.

        Raises:
            RequestError: a backend that writes whole checkpoints, or windows longer than the model allows.
        """
        backend = by_block(
            session.request.backend, f"name an allocator instead of {AUTO!r}, or tune with {{able}}"
        )
        windows = session.profiled_windows
        if windows is None:
            raise TypeError("plans are tried with windows of calibration text")
        asked, config = session.recipe.damage_len, session.loaded.model.config
        length = resolve_seq_len(asked, config, DEFAULT_DAMAGE_LEN, "--damage-len")
        return cls(session, backend, windows, length)

    def means(self, share: int = 1) -> Means:
        """The windows of the rounds, the backend seeing one of `share` of those that it could."""
        judging = self.session.recipe.damage_samples or DEFAULT_DAMAGE_SAMPLES
        return Means(max(len(self.windows) // share, 1), judging)

    def of_all(self, candidates: Sequence[Candidate], means: Means) -> float:
        """Of everything but a profile, if each candidate gives a plan of its own."""
        return self.of_report(candidates) + self.of_rounds(rounds_of(len(candidates), means))

    def of_report(self, candidates: Sequence[Candidate]) -> float:
        """Of measuring importance, if one of the candidates reads it."""
        windows = self.session.measuring
        is_measured = any(one.allocator.reads_scores for one in candidates)
        return windows.ids.numel() if windows is not None and is_measured else 0

    def of_rounds(self, rounds: Sequence[TuningRound]) -> float:
        """Of carrying plans out and judging them, the dense model once in each round."""
        return judging_windows(rounds) * self.judging_len + sum(map(self._of_round, rounds))

    def _of_round(self, one: TuningRound) -> float:
        source = self.session.request.statistics
        passes = passes_of(self.backend, self.windows.first(one.statistics_windows), source)
        once = passes.n_tokens if source == "dense" else 0
        return once + one.plans * (passes.of_execution + one.judging_windows * self.judging_len)


@dataclass(frozen=True)
class Scheme:
    """What is going to be tried.

    Attributes:
        candidates: whose plans.
        left_out: candidates that there is no profile for, and none is going to be measured.
        profiling: how a profile is measured first; None if there is one, or nobody reads any.
        profile_cost: of that.
        means: windows of the rounds.
        pricing: what these cost.
    """

    candidates: tuple[Candidate, ...]
    left_out: tuple[Candidate, ...]
    profiling: ProfileSettings | None
    profile_cost: float
    means: Means
    pricing: Pricing

    @property
    def statistics(self) -> TokenWindows:
        """Windows that the backend sees in the last round."""
        return self.pricing.windows.first(self.means.statistics_windows)

    @property
    def rounds(self) -> tuple[TuningRound, ...]:
        """The rounds, if every candidate gives a plan of its own."""
        return rounds_of(len(self.candidates), self.means)

    @property
    def positions(self) -> int:
        """Positions of each window to judge on that are compared."""
        return max(
            1, (self.pricing.session.recipe.positions or DEFAULT_POSITIONS) // self.means.judging_windows
        )

    @property
    def forward_tokens(self) -> float:
        """The most that it costs: several candidates may give one plan."""
        return self.cost_of(self.rounds)

    def cost_of(self, rounds: Sequence[TuningRound]) -> float:
        """What it costs with these rounds."""
        measuring = self.profile_cost + self.pricing.of_report(self.candidates)
        return measuring + self.pricing.of_rounds(rounds)

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "candidates": [one.name for one in self.candidates],
            "left_out": [one.name for one in self.left_out],
            "measures_profile": self.profiling is not None,
            "rounds": [one.model_dump() for one in self.rounds],
            "forward_tokens": self.forward_tokens,
        }

    @property
    def in_words(self) -> str:
        """What is about to be done, in a line."""
        plans = " then ".join(f"{one.plans:,}" for one in self.rounds)
        first = "measuring a sensitivity profile, then " if self.profiling else ""
        left_out = ", ".join(one.name for one in self.left_out)
        without = f"; without {left_out}, {_BROUGHT_IN_BY}" if left_out else ""
        cost = f"at most {self.forward_tokens:,.0f} tokens through the model"
        return f"{first}trying {plans} plans: {cost}{without}"


def scheme_of(session: Session) -> Scheme:
    """The most that can be tried for the cost that is allowed, and everything where nobody says.

    A profile is measured where a candidate that reads one is named, where it is said how to measure one, or
    where the cost that is allowed covers it.

    Raises:
        RequestError: not even equal shares and one other plan are within the cost; a profile that is wanted
            by name costs too much, or one that is given is of something else.
    """
    pricing, every = Pricing.of(session), session.request.candidates
    most = float(n_tokens(session.recipe.max_cost)) if session.recipe.max_cost else None
    given = session.request.profile
    if given is not None:
        check_given(session, given)
    profiling, cost = (None, 0.0) if given is not None else _profiling(session, pricing, most)
    has_profile = given is not None or profiling is not None
    able = tuple(one for one in every if has_profile or not one.reads_damage)
    chosen, means = _affordable(pricing, able, most, cost)
    left_out = tuple(one for one in every if one not in able)
    return Scheme(chosen, left_out, profiling, cost, means, pricing)


def _profiling(
    session: Session, pricing: Pricing, most: float | None
) -> tuple[ProfileSettings | None, float]:
    """How a profile is measured, and its cost; None where nobody wants it, or what is allowed is too little.

    Raises:
        RequestError: it is asked for, and costs too much.
    """
    settings, every = session.request.profiling, session.request.candidates
    named = session.recipe.candidates or ()
    is_described = any(getattr(session.recipe, name) is not None for name in _OF_PROFILES_ALONE)
    is_named = is_described or any(one.reads_damage and one.allocator.name in named for one in every)
    if settings is None or (most is None and not is_named):
        return None, 0.0
    if most is not None:
        least = pricing.of_all(thinned(every, 1), pricing.means(_SHARES_OF_WINDOWS[-1]))
        settings = replace(settings, max_cost=max(int(most - least), 1))
    try:
        return subject_of(session).affordable(settings)
    except RequestError:
        if is_named:
            raise
        return None, 0.0


def _affordable(
    pricing: Pricing, candidates: Sequence[Candidate], most: float | None, spent: float
) -> tuple[tuple[Candidate, ...], Means]:
    """The dearest choice of candidates and windows that costs no more than is left.

    Raises:
        RequestError: even the cheapest is above it.
    """
    if most is None:
        return tuple(candidates), pricing.means()
    choices = [
        (thinned(candidates, n_each), pricing.means(share))
        for n_each, share in product(_SETTINGS_OF_EACH, _SHARES_OF_WINDOWS)
    ]
    costs = [spent + pricing.of_all(*choice) for choice in choices]
    within = [place for place, cost in enumerate(costs) if cost <= most]
    if not within:
        raise RequestError(
            f"max-cost {most:,.0f} pays for no trial: equal shares and one other plan take {min(costs):,.0f} "
            "forward tokens: allow as much, or give fewer --samples or --damage-samples"
        )
    return choices[max(within, key=costs.__getitem__)]
