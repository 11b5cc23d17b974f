"""A line of plans: levels switched at random at the same budget, the best of many kept.

After EvoPress (Sieberling, Kuznedelev, Kurtic & Alistarh, arXiv 2410.14649): each generation has offspring of
one parent, made by a few switches, one part a level up and another a level down. Selection goes in stages, on
ever more windows with ever fewer of them, and in the last the parent competes with the best. Blocks are
compressed on what the dense model reads, so that they can be exchanged one by one.

Where this differs: parts of unequal size are switched too, as many down as keep the budget; an offspring is
run from the first block on in which it differs from its parent; and the plan in the end has to pass the gate.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import ceil, inf, isfinite
from random import Random

from torch import Tensor

from owl_compress.documents.journal import ComparedPlans
from owl_compress.documents.plan import Plan
from owl_compress.importance.parts import Part
from owl_compress.importance.reference import DenseReference
from owl_compress.models.state import on_device
from owl_compress.refinement.block_copies import cost_of_copies
from owl_compress.refinement.gate import Gate
from owl_compress.refinement.swaps import Ledger, Move, move_between
from owl_compress.walk.blocks import BlockWalk
from owl_compress.walk.outputs import OutputDistribution

Values = Mapping[str, float]
"""Budget of each linear of the plan, by name."""

_SHARES_OF_WINDOWS = (0.25, 0.5, 1.0)
_MOST_SWITCHES = 3
_MOST_DRAWS = 20
_ROUNDING = 1e-9


@dataclass
class Stage:
    """Windows that offspring are compared on, and how far the parent has got on them.

    Attributes:
        walk: over the dense model, prepared.
        dense: its predictions.
        n_tokens: of the windows.
        incoming: the states that reach each block of the parent, and behind the last those that leave it.
        damage: of the parent.
    """

    walk: BlockWalk
    dense: OutputDistribution
    n_tokens: int
    incoming: list[Sequence[Tensor]]
    damage: float = inf


@dataclass
class Lineage:
    """One line of parents, from a plan on.

    Attributes:
        gate: the dense model, who compresses it, and what may move.
        plan: where it starts.
        n_offspring: in each generation.
        random: what is drawn.
    """

    gate: Gate
    plan: Plan
    n_offspring: int
    random: Random
    _stages: list[Stage] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._workshop = self.gate.workshop
        self._ledger = Ledger.of(self.plan)
        self._values: Values = {budget.name: budget.value for budget in self.plan.budgets}

    @staticmethod
    def n_windows(available: int) -> list[int]:
        """Windows of each stage."""
        return sorted({max(1, round(share * available)) for share in _SHARES_OF_WINDOWS})

    def n_compared(self) -> list[int]:
        """Offspring that are compared in each stage."""
        n_stages = len(self.n_windows(len(self.gate.choosing.windows)))
        return [max(1, ceil(self.n_offspring ** (1 - stage / n_stages))) for stage in range(n_stages)]

    @property
    def cost_of_start(self) -> float:
        """Tokens for the statistics, and for the parent and the dense model on every stage."""
        return cost_of_copies(self._workshop) + 2 * sum(self._tokens())

    @property
    def cost_of_generation(self) -> float:
        """Tokens that a generation takes at most: offspring from the first block on, and a new parent."""
        tokens = self._tokens()
        return sum(tokens) + sum(n * one for n, one in zip(self.n_compared(), tokens, strict=True))

    def _tokens(self) -> list[int]:
        windows = self.gate.choosing.windows
        return [n * windows.record.seq_len for n in self.n_windows(len(windows))]

    def evolved(self, most: int | None, reserve: float) -> "Descent":
        """The last parent after `most` generations, or as many as leave `reserve` tokens to spend."""
        with ExitStack() as stack:
            self._smallest = self._smallest_move()
            self._stages = [self._stage(n, stack) for n in self.n_windows(len(self.gate.choosing.windows))]
            self._follow(self._values, 0)
            first, generations = self._stages[-1].damage, 0
            while (most is None or generations < most) and self._workshop.spending.affords(
                self.cost_of_generation + reserve
            ):
                if not self._generation(generations + 1):
                    break  # no exchange keeps the budget, and none will
                generations += 1
            return Descent(dict(self._values), first, self._stages[-1].damage, generations)

    def _smallest_move(self) -> float:
        moves = (self._move(self._values, part, new) for part, new in self.gate.moves_from(self._values))
        return min((abs(move.spend) for move in moves if move and move.spend), default=0.0)

    def _stage(self, n_windows: int, stack: ExitStack) -> Stage:
        workshop = self._workshop
        reference = DenseReference.of(
            workshop.model,
            workshop.structure,
            self.gate.choosing.windows.first(n_windows),
            workshop.device,
            n_positions=self.gate.choosing.n_positions,
        )
        batches = reference.windows.batches(reference.batch_size)
        walk = BlockWalk(workshop.model, workshop.structure, batches, device=workshop.device)
        stack.enter_context(walk.prepared())
        workshop.spending.add(reference.windows.ids.numel())
        dense = reference.distribution(workshop.model, workshop.structure)
        return Stage(walk, dense, reference.windows.ids.numel(), [list(walk.hidden)])

    def _generation(self, number: int) -> bool:
        """The best of the parent and its offspring for the next one; False where there are none of these."""
        offspring = [child for _ in range(self.n_offspring) if (child := self._child()) is not None]
        if not offspring:
            return False
        damages: list[float] = []
        for stage, n in enumerate(self.n_compared()):
            if not damages:
                ranked = offspring[:n]
            else:
                order = sorted(range(len(ranked)), key=damages.__getitem__)
                ranked = [ranked[place] for place in order[:n]]
            damages = self._damages(self._stages[stage], ranked, f"generation-{number}.{stage}")
        if damages and min(damages) < self._stages[-1].damage:
            best = ranked[damages.index(min(damages))]
            first = self._first_difference(best)
            self._values = best
            self._follow(best, first)
        return True

    def _child(self) -> Values | None:
        """The parent with a few switches; None where none was found."""
        values: Values = self._values
        switches = min(self.random.randint(1, _MOST_SWITCHES) for _ in range(2))
        for _ in range(switches):
            values = self._switched(values)
        return values if values != self._values else None

    def _switched(self, values: Values) -> Values:
        """One part a level up, and others down as far as the budget wants it; or all as it was."""
        for _ in range(_MOST_DRAWS):
            up, *others = self.random.sample(self.gate.parts, len(self.gate.parts))
            others.sort(
                key=lambda part: part.n_weights != up.n_weights
            )  # equal ones first; the sort is stable
            if (found := self._balanced(values, up, others)) is not None:
                return found
        return values

    def _balanced(self, values: Values, up: Part, others: Sequence[Part]) -> Values | None:
        least, most = self._ledger.room(values, self._smallest)
        rise = self._moved(values, up, 1)
        if rise is None:
            return None
        found, spend = {**values, **rise.budgets}, rise.spend
        slack = _ROUNDING * abs(rise.spend)
        for part in others:
            if spend <= most + slack:
                break
            fall = self._moved(found, part, -1)
            if fall is None:
                continue
            if self._ledger.is_divisible:
                fall = fall.scaled(min(1.0, -spend / fall.spend), found)
            if spend + fall.spend < least - slack:
                continue  # more than is wanted: a smaller part may do
            found, spend = {**found, **fall.budgets}, spend + fall.spend
        return found if least - slack <= spend <= most + slack else None

    def _moved(self, values: Values, part: Part, way: int) -> Move | None:
        """The part one level on; None where it cannot."""
        return self._move(values, part, self.gate.moved(values, part, way))

    def _move(self, values: Values, part: Part, new: Values) -> Move | None:
        return move_between(part.name, [linear.name for linear in part.linears], values, new, self._ledger)

    def _first_difference(self, values: Values) -> int:
        """The first block that is not as the parent's."""
        before, after = self._values, values
        return next(
            index
            for index, site in enumerate(self._workshop.structure.blocks)
            if any(after[name] != before[name] for name in self.gate.of_block(before, site.name))
        )

    def _damages(self, stage: Stage, offspring: Sequence[Values], name: str) -> list[float]:
        """Of offspring in one of the stages, noted by a `name`; infinite where the model overflows."""

        def compared() -> ComparedPlans:
            # Together: what the dense model predicts is worked out once for all of them.
            reached = [_last(self._states(stage, child, first)) for child, first in starts]
            damages = stage.dense.divergences(reached)
            return ComparedPlans(damages=tuple(one if isfinite(one) else None for one in damages))

        starts = [(child, self._first_difference(child)) for child in offspring]
        found = self._workshop.options.notes.once(name, ComparedPlans, compared)
        for _, first in starts:
            self._count(stage, first)
        return [inf if damage is None else damage for damage in found.damages]

    def _count(self, stage: Stage, first: int) -> None:
        """Count what running the blocks from `first` on takes."""
        n_blocks = len(self._workshop.structure.blocks)
        self._workshop.spending.add(stage.n_tokens * (n_blocks - first) / n_blocks)

    def _follow(self, values: Values, first: int) -> None:
        """Take the parent's states from block `first` on, at every stage."""
        for stage in self._stages:
            stage.incoming[first + 1 :] = self._states(stage, values, first)
            self._count(stage, first)
            (stage.damage,) = stage.dense.divergences([stage.incoming[-1]])

    def _states(self, stage: Stage, values: Values, first: int) -> Iterator[list[Tensor]]:
        """What leaves each block from `first` on, on the states that reach that block of the parent."""
        sites, states = self._workshop.structure.blocks, stage.incoming[first]
        for index in range(first, len(sites)):
            block = sites[index].name
            budgets = self.gate.of_block(values, block)
            module = self.gate.copies.module(block, budgets) if budgets else sites[index].module
            with on_device(module, self._workshop.device):
                states = [
                    stage.walk.run_block(index, batch, hidden.to(self._workshop.device), module)
                    for batch, hidden in enumerate(states)
                ]
            yield states


def _last(states: Iterator[list[Tensor]]) -> list[Tensor]:
    """The last of them; the others are let go."""
    return deque(states, maxlen=1).pop()


@dataclass(frozen=True)
class Descent:
    """What became of a line: the last parent, and damages on all windows of the first and of the last."""

    values: dict[str, float]
    first: float
    last: float
    generations: int
