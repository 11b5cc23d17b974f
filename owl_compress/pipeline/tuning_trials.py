"""Plans carried out on copies of the model, round by round, and what each of them did."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import Plan
from owl_compress.documents.tuning import TuningRound
from owl_compress.errors import RequestError
from owl_compress.importance.reference import DenseReference
from owl_compress.pipeline.judging import CarryOut
from owl_compress.pipeline.reports import dense_statistics
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.tuning_choice import Damages
from owl_compress.progress import SILENT


@dataclass
class Contestant:
    """A plan that no other equals, and what became of it so far.

    Attributes:
        name: whose plan it is.
        plan: see there.
        damages: of each round that it was in.
        reason: why it cannot be carried out; None while it can.
    """

    name: str
    plan: Plan
    damages: list[Damages] = field(default_factory=list)
    reason: str | None = None

    @property
    def last(self) -> float:
        """Its mean damage in the last round that it was in."""
        return self.damages[-1].mean


@dataclass(frozen=True)
class Contest:
    """Who carries plans out, on which text, and who is never dropped.

    Attributes:
        session: its model stays dense.
        carry_out: see there.
        statistics: windows that the backend sees in the last round, the first of them before.
        judging: windows that plans are judged on, those of the first round first.
        positions: in each of these that are compared.
        baseline: the contestant that stays in to the end; None if there is none.
    """

    session: Session
    carry_out: CarryOut
    statistics: TokenWindows
    judging: TokenWindows
    positions: int
    baseline: Contestant | None

    def run(self, contestants: Sequence[Contestant], rounds: Sequence[TuningRound]) -> list[Contestant]:
        """Those that were in the last round, the one with the least damage first.

        Raises:
            RequestError: not one of the plans can be carried out.
        """
        standing, start = list(contestants), 0
        for number, one in enumerate(rounds, start=1):
            standing = self._first(standing, one.plans)
            end = start + one.judging_windows
            what = f"trying plans {number}/{len(rounds)}" if len(rounds) > 1 else "trying plans"
            self._try(standing, one, self.judging.between(start, end), what)
            standing = [contestant for contestant in standing if contestant.reason is None]
            if not standing:
                raise RequestError(f"no plan can be carried out: {contestants[0].reason}")
            start = end
            standing.sort(key=lambda contestant: contestant.last)  # keeps the order of those that are equal
        return standing

    def _first(self, standing: list[Contestant], count: int) -> list[Contestant]:
        """As many as the round has places for; equal shares have one of them in any case."""
        kept = standing[:count]
        if self.baseline in standing and self.baseline not in kept and self.baseline is not None:
            kept[-1] = self.baseline
        return kept

    def _try(
        self, standing: Sequence[Contestant], one: TuningRound, judging: TokenWindows, what: str
    ) -> None:
        """Carry every plan out, and note what it did."""
        session = self._seated(one.statistics_windows, [budget.name for budget in standing[0].plan.budgets])
        reference = DenseReference.of(
            session.loaded.model,
            session.structure,
            judging,
            session.request.device,
            n_positions=self.positions * len(judging),
            batch_size=session.recipe.batch_size,
        )
        for contestant in self.session.progress.track(standing, total=len(standing), what=what):
            copy = session.on_a_copy()
            try:
                self.carry_out(copy, contestant.plan)
            except RequestError as error:
                contestant.reason = str(error)
            else:
                by_window = reference.divergence_by_window(copy.loaded.model)
                contestant.damages.append(Damages(tuple(by_window)))

    def _seated(self, n_windows: int, names: Sequence[str]) -> Session:
        """The session on the first windows of the statistics; norms of the dense model are taken once."""
        windows = self.statistics.first(n_windows)
        session = replace(self.session, calibration=windows, progress=SILENT)
        if session.asks_for_dense:
            session.keep(dense_statistics(session, names))
        return session
