"""Method `swaps`: every part a level up and a level down, and of these moves the best few at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import fsum

from owl_compress.importance.damage import Trial
from owl_compress.refinement.gate import NO_GAIN, OUT_OF_MEANS, Gate
from owl_compress.refinement.refined import DEFAULT_ROUNDS
from owl_compress.refinement.swaps import Ledger, Move, best_moves, mean_level, move_between
from owl_compress.refinement.workshop import Standing

_AS_IT_IS = "the plan as it is"


@dataclass(frozen=True)
class SwapRounds:
    """Rounds of moves, from one plan that the gate let through to the next."""

    gate: Gate

    def cost_of_round(self, at: Standing) -> float:
        """Tokens that measuring all moves, and carrying some out, takes."""
        workshop = self.gate.workshop
        return workshop.cost_of_trials(self.trials(at), self.gate.choosing) + workshop.cost_of_standing

    def costs(self, at: Standing) -> tuple[float, float]:
        """Tokens that it takes at least, and where nobody says how many it may."""
        one = self.cost_of_round(at)
        return one, DEFAULT_ROUNDS * one

    def run(self, given: Standing) -> tuple[Standing, str]:
        """The best plan, and why no more was tried."""
        standing, number = given, 1
        while self.gate.affords(self.cost_of_round(standing)):
            better, ended = self._round(number, standing)
            if better is None:
                return standing, ended
            standing, number = better, number + 1
        return standing, OUT_OF_MEANS

    def trials(self, at: Standing) -> list[Trial]:
        """Every part a level up and a level down, and last the plan as it is.

        Raises:
            RequestError: nothing can move.
        """
        gate, found, sizes = self.gate, [], self.gate.workshop.structure.linear_sizes
        for part, moved in gate.moves_from(at.values):
            budgets = gate.of_block(at.values, part.block) | moved
            level = mean_level(sizes, {linear.name: budgets[linear.name] for linear in part.linears})
            found.append(Trial(part.name, part.block, level, budgets))
        last = gate.of_block(at.values, found[-1].block)
        return [*found, Trial(_AS_IT_IS, found[-1].block, mean_level(sizes, last), last)]

    def measured(self, at: Standing) -> tuple[float, list[Move]]:
        """Damage of the plan on the windows that moves are chosen on, and every move with its gain."""
        *tried, as_it_is = self.gate.workshop.tried(at, self.trials(at), self.gate.choosing)
        ledger, parts = Ledger.of(at.plan), {part.name: part for part in self.gate.parts}
        moves = []
        for one in tried:
            own = [linear.name for linear in parts[one.trial.name].linears]
            move = move_between(one.trial.name, own, at.values, one.budgets, ledger)
            if move is not None and move.spend:
                moves.append(replace(move, gain=as_it_is.damage - one.damage))
        return as_it_is.damage, moves

    def _round(self, number: int, at: Standing) -> tuple[Standing | None, str]:
        """The best moves that the gate lets through: at first all pairs, then half as many, down to one."""
        damage, moves = self.measured(at)
        pairs = self.gate.options.pairs
        tried: list[Sequence[Move]] = []
        while pairs >= 1:
            chosen = best_moves(moves, 2 * pairs, Ledger.of(at.plan), at.values)
            if not chosen:
                break
            if not self.gate.affords(self.gate.workshop.cost_of_standing):
                return None, OUT_OF_MEANS
            expected = damage - fsum(move.gain for move in chosen)
            if (after := self.gate.passed(number, at, chosen, (damage, expected))) is not None:
                return after, ""
            tried.append(chosen)
            pairs = min(pairs, (len(chosen) + 1) // 2) // 2
        return None, self.gate.refusal(len(tried)) if tried else NO_GAIN
