"""Method `evo`: evolution from the plan on, and the plan that it ends with put to the gate."""

from dataclasses import dataclass
from random import Random

from owl_compress.refinement.gate import NO_GAIN, OUT_OF_MEANS, Gate
from owl_compress.refinement.lineage import Lineage
from owl_compress.refinement.refined import DEFAULT_ROUNDS
from owl_compress.refinement.swap_rounds import SwapRounds
from owl_compress.refinement.swaps import Ledger, Move, move_between
from owl_compress.refinement.workshop import Standing


@dataclass(frozen=True)
class Evolution:
    """Generations until there are as many as were asked for, or the cost is spent."""

    gate: Gate

    def costs(self, at: Standing) -> tuple[float, float]:
        """Tokens that it takes at least, and where nobody says how many it may: as many as swaps would."""
        generations = self.gate.options.generations
        # First: where units go whole, the next sizes are looked for in block copies, which cost their share.
        as_swaps = DEFAULT_ROUNDS * SwapRounds(self.gate).cost_of_round(at) if generations is None else 0.0
        line = self._line(at)
        fixed = line.cost_of_start + self.gate.workshop.cost_of_standing
        least = fixed + line.cost_of_generation
        if generations is not None:
            return least, fixed + generations * line.cost_of_generation
        return least, max(least, as_swaps)

    def run(self, given: Standing) -> tuple[Standing, str]:
        """The plan that it ended with, if the gate lets it through, and why no more was tried."""
        most = self.gate.options.generations
        descent = self._line(given).evolved(most, self.gate.workshop.cost_of_standing)
        moves = self._moves(given, descent.values)
        if not moves:
            return given, f"{NO_GAIN} in {descent.generations} generations"
        predicted = (descent.first, descent.last)
        after = self.gate.passed(descent.generations, given, moves, predicted)
        if after is None:
            return given, self.gate.refusal(1)
        return after, OUT_OF_MEANS if descent.generations != most else f"its generations ({most}) are over"

    def _line(self, at: Standing) -> Lineage:
        options = self.gate.options
        random = Random(options.seed)  # noqa: S311 - nothing is kept secret by it
        return Lineage(self.gate, at.plan, options.offspring, random)

    def _moves(self, at: Standing, values: dict[str, float]) -> list[Move]:
        """What moved, part by part."""
        ledger, moves = Ledger.of(at.plan), []
        for part in self.gate.parts:
            own = [linear.name for linear in part.linears]
            after = {name: values[name] for name in own}
            if (move := move_between(part.name, own, at.values, after, ledger)) is not None:
                moves.append(move)
        return moves
