"""The gate: a plan is only ever replaced by one that, carried out, does less damage on text held apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from owl_compress.documents.sensitivity import PartKind
from owl_compress.documents.units import Grid
from owl_compress.errors import RequestError
from owl_compress.importance.parts import Part, find_parts
from owl_compress.importance.reference import DenseReference
from owl_compress.refinement.block_copies import BlockCopies
from owl_compress.refinement.refined import Attempt, RefinementOptions
from owl_compress.refinement.steps import Steps
from owl_compress.refinement.swaps import Move
from owl_compress.refinement.workshop import Standing, Workshop, with_values

_ROUNDING = 1e-9

NO_GAIN = "no moves that keep the budget gain anything"
REFUSED = "no choice of moves lowered the damage on the text of the gate"
NOT_CARRIED_OUT = "the backend carries out something else than the moves that were chosen"
OUT_OF_MEANS = "the cost that was allowed is spent"


@dataclass(frozen=True)
class Gate:
    """What every way of refining stands on.

    Attributes:
        workshop: who carries plans out, and judges them.
        choosing: the dense predictions on the windows that moves are chosen on.
        options: what was asked for.
        steps: the levels that budgets may have.
        kind: what moves at a time.
        names: of the linears that have budgets.
        grid: of these.
        attempts: what was tried so far.
    """

    workshop: Workshop
    choosing: DenseReference
    options: RefinementOptions
    steps: Steps
    kind: PartKind
    names: frozenset[str]
    grid: Grid | None
    attempts: list[Attempt] = field(default_factory=list, init=False)

    @cached_property
    def parts(self) -> list[Part]:
        """The parts whose linears all have budgets that may move."""
        free = self.names - self.options.fixed
        parts = find_parts(self.workshop.structure, self.kind, self.names)
        return [part for part in parts if {linear.name for linear in part.linears} <= free]

    @cached_property
    def copies(self) -> BlockCopies:
        """Compressed copies of single blocks; the first time, the dense model is walked for them."""
        return BlockCopies.of(self.workshop, self.names, self.grid)

    def moved(self, values: Mapping[str, float], part: Part, way: int) -> dict[str, float]:
        """The linears of a part one level up (1) or down (-1), the rest of its block as it is.

        Where a backend removes whole units, it is the next size that it can carry out. Nothing is returned
        where there is none.
        """
        own = {linear.name: values[linear.name] for linear in part.linears}
        if self.workshop.backend.survey is None:
            return self.steps.moved(own, way)
        block = self.of_block(values, part.block)
        for asked in self.steps.ever_further(own, way):
            settled = self.copies.settled(part.block, block | asked)
            if settled is None:
                continue
            found = {name: settled[name] for name in own if abs(settled[name] - own[name]) > _ROUNDING}
            if found and self._is_carried_out(part.block, block | found):
                return found
        return {}

    def moves_from(self, values: Mapping[str, float]) -> list[tuple[Part, dict[str, float]]]:
        """Every part a level up and a level down, where it can: the part, and the budgets that it moves to.

        Raises:
            RequestError: none can.
        """
        moves = ((part, self.moved(values, part, way)) for part in self.parts for way in (1, -1))
        found = [(part, budgets) for part, budgets in moves if budgets]
        if not found:
            raise RequestError(
                "no part of the plan can move: every budget is at its bound or set by hand; allocate it with "
                "wider --low and --high, or name a finer --part"
            )
        return found

    def _is_carried_out(self, block: str, budgets: Mapping[str, float]) -> bool:
        settled = self.copies.settled(block, budgets)
        return settled is not None and _alike(settled, budgets)

    def of_block(self, values: Mapping[str, float], block: str) -> dict[str, float]:
        """The budgets of the linears of one block, of all that have any."""
        return {name: values[name] for name in self._linears[block]}

    @cached_property
    def _linears(self) -> Mapping[str, list[str]]:
        return {
            site.name: [linear.name for linear in site.linears if linear.name in self.names]
            for site in self.workshop.structure.blocks
        }

    def affords(self, tokens: float) -> bool:
        """Whether so many more forward tokens may be spent."""
        return self.workshop.spending.affords(tokens)

    def passed(
        self, number: int, at: Standing, moves: Sequence[Move], predicted: tuple[float, float]
    ) -> Standing | None:
        """The plan with these moves made, carried out.

        None if its measured damage is no lower, or if the backend made something else of it: a plan says what
        is carried out.
        """
        changed = {name: value for move in moves for name, value in move.budgets.items()}
        after = self.workshop.standing(with_values(at.plan, changed))
        asked = {**at.values, **changed}
        others = tuple(name for name in asked if abs(after.values[name] - asked[name]) > _ROUNDING)
        attempt = Attempt(number, tuple(moves), predicted, (at.damage, after.damage), others)
        self.attempts.append(attempt)
        return after if attempt.is_kept else None

    def refusal(self, n_attempts: int) -> str:
        """Why none of the latest so many attempts was kept."""
        latest = self.attempts[-n_attempts:]
        return NOT_CARRIED_OUT if all(attempt.not_carried_out for attempt in latest) else REFUSED


def _alike(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return all(abs(value - other[name]) <= _ROUNDING for name, value in one.items())
