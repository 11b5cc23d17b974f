"""Damage: what it does to a model's output that one of its blocks is compressed.

One engine for profiles and refinements: a model whose blocks run as they are (dense, or compressed already),
and for one block after the other trials on copies of its dense self. The states that reach the block are at
hand, so a trial costs the blocks from there on, and logits at the chosen positions.

Measures, each a mean over positions:

- `kl`: KL(dense ‖ changed) of the next-token distribution, in nats.
- `loss`: negative log-likelihood of the next token beyond the dense model's; it may be below zero.
- `output-error`: ‖h' - h‖² / ‖h‖² of the block's output h, summed over all positions; costs no later block.
- `fisher`: ½ (g · (h' - h))², g the gradient of log p(y) at the block's output for tokens y drawn from the
  model's own predictions: the second-order term of `kl` with the Fisher matrix of the output, taken token by
  token; costs one pass back and no later block.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite
from operator import itemgetter
from typing import Protocol

from torch import Tensor, nn

from owl_compress.compression.block_trials import BlockTrials, shared_inputs
from owl_compress.compression.contract import Backend
from owl_compress.documents.journal import TriedLevel, TriedTogether
from owl_compress.documents.notes import NO_NOTES, Notes
from owl_compress.documents.units import Grid
from owl_compress.errors import RequestError
from owl_compress.models.structure import BlockSite
from owl_compress.progress import SILENT, Progress
from owl_compress.walk.blocks import BlockWalk
from owl_compress.walk.gradients import Salience
from owl_compress.walk.outputs import OutputDistribution, States

_VARIANTS_AT_ONCE = 8
"""Trials whose states are carried through the later blocks together."""


@dataclass(frozen=True)
class Trial:
    """Budgets of some linears of one block, by name; everything else stays as it is.

    Attributes:
        name: of the part that is tried, at the `level` that it gets: for messages.
        block: the name of the block.
        budgets: of the linears.
        is_optional: whether it is passed over where the backend refuses it.
    """

    name: str
    block: str
    level: float
    budgets: Mapping[str, float]
    is_optional: bool = False


@dataclass(frozen=True)
class Tried:
    """What came of a trial: the damage, and the budgets that were carried out, whole numbers made of them."""

    trial: Trial
    damage: float
    budgets: Mapping[str, float]


class DamageMeasure(Protocol):
    """Turns the states that a changed block leads to into a damage."""

    @property
    def runs_to_the_end(self) -> bool:
        """Whether it looks at the output of the model, or of the changed block alone."""
        ...

    def damages(self, block: int, own: States, others: Sequence[States]) -> list[float]:
        """Of each of the `others`; they and `own` are states behind the last block, or behind this one."""
        ...


@dataclass(frozen=True)
class Divergence:
    """Measure `kl`."""

    dense: OutputDistribution
    runs_to_the_end = True

    def damages(self, block: int, own: States, others: Sequence[States]) -> list[float]:  # noqa: ARG002
        """KL(dense ‖ changed)."""
        return self.dense.divergences(others)


@dataclass(frozen=True)
class Loss:
    """Measure `loss`."""

    dense: OutputDistribution
    runs_to_the_end = True

    def damages(self, block: int, own: States, others: Sequence[States]) -> list[float]:  # noqa: ARG002
        """What the loss rises by."""
        return self.dense.losses(others)


@dataclass(frozen=True)
class OutputError:
    """Measure `output-error`."""

    runs_to_the_end = False

    def damages(self, block: int, own: States, others: Sequence[States]) -> list[float]:  # noqa: ARG002
        """Squared change of the block's output over its square."""
        energy = sum(float(states.double().square().sum()) for states in own)
        return [_squared_distance(own, other) / max(energy, 1e-300) for other in others]


@dataclass(frozen=True)
class Fisher:
    """Measure `fisher`; `gradients` of log p(y) by block and batch, each [batch, seq_len, hidden]."""

    gradients: Sequence[States]
    runs_to_the_end = False

    def damages(self, block: int, own: States, others: Sequence[States]) -> list[float]:
        """Half the squared change of log p(y), token by token."""
        n_tokens = sum(states.shape[0] * states.shape[1] for states in own)
        return [self._half_squares(block, own, other) / n_tokens for other in others]

    def _half_squares(self, block: int, own: States, other: States) -> float:
        total = 0.0
        for gradient, before, after in zip(self.gradients[block], own, other, strict=True):
            change = after.double() - before.to(after.device).double()
            along = (change * gradient.to(after.device).double()).sum(dim=-1)  # [batch, seq_len]
            total += 0.5 * float(along.square().sum())
        return total


def _squared_distance(own: States, other: States) -> float:
    return sum(
        float((after.double() - before.to(after.device).double()).square().sum())
        for before, after in zip(own, other, strict=True)
    )


@dataclass(frozen=True)
class Bench:
    """What trials are made on.

    Attributes:
        seen: a walk over the calibration windows on the model as it is: what reaches each block there, and so
            the backend's statistics; it runs nothing where the backend reads none. Over the dense model, it
            tells the dense model's statistics. Processes that walk together in it divide the trials, too.
        damaged: a walk over the windows that damage is measured on, on the same model.
        dense: the blocks with their dense weights, in order; those of the model itself while it is dense.
        backend: who compresses, settled.
        grid: of the budgets, or None.
        measure: what damage is.
        salience: of linears by name, for a backend that reads gradients.
        notes: of these very trials, as far as they were made before.
        refusals: why optional trials were passed over, by their names; the last of each name.
    """

    seen: BlockWalk
    damaged: BlockWalk
    dense: Sequence[BlockSite]
    backend: Backend
    grid: Grid | None
    measure: DamageMeasure
    salience: Mapping[str, Salience]
    notes: Notes = NO_NOTES
    refusals: dict[str, RequestError] = field(default_factory=dict, init=False, repr=False)

    def tried(
        self, trials: Sequence[Trial], progress: Progress = SILENT, what: str = "trying blocks"
    ) -> Generator[Tried, None, None]:
        """Make the trials, block after block; those of one block in the order in which they are given.

        Close the generator where it may be left early: that puts the model's modes back.

        Raises:
            RequestError: what the backend refuses, NaN or Inf in activations, or a damage that is none.
        """
        blocks = self.damaged.structure.blocks
        by_block: dict[str, list[Trial]] = {site.name: [] for site in blocks}
        for trial in trials:
            by_block[trial.block].append(trial)
        last = max(index for index, site in enumerate(blocks) if by_block[site.name])
        with ExitStack() as stack:
            stack.enter_context(self.seen.prepared())
            stack.enter_context(self.damaged.prepared())
            for index in progress.track(range(last + 1), last + 1, what):
                yield from self._of_block(index, by_block[blocks[index].name])

    def _of_block(self, index: int, trials: Sequence[Trial]) -> Iterator[Tried]:
        """The trials of one block; the walks then stand behind the block as the model has it."""
        incoming = list(self.damaged.hidden)
        with self.damaged.visit(index) as own:
            own.advance()
        behind = list(self.damaged.hidden)
        is_dense = self.dense[index].module is self.seen.structure.blocks[index].module
        # Of several processes each makes some; those without any look at the inputs together with the others.
        ranks = self.seen.ranks
        mine = trials[ranks.rank :: ranks.of]
        few = {
            f"{self.dense[index].name}.{start}": mine[start : start + _VARIANTS_AT_ONCE]
            for start in range(0, len(mine), _VARIANTS_AT_ONCE)
        }
        is_known = bool(few) and all(map(self.notes.has, few))
        trying = self._trials(index, trials, advance=is_dense) if trials and not is_known else None
        found: list[Tried] = []
        for name, some in few.items():
            made = self.notes.once(
                name, TriedTogether, partial(self._together, index, trying, some, incoming, behind)
            )
            self.refusals.update({part: RequestError(reason) for part, reason in made.refused.items()})
            found += [Tried(some[one.number], one.damage, one.budgets) for one in made.tried]
        yield from self._of_all(found, trials) if trials else ()
        if self.seen.hidden and not (trying and is_dense):
            with self.seen.visit(index) as visit:
                visit.advance()

    def _trials(self, index: int, trials: Sequence[Trial], *, advance: bool) -> BlockTrials:
        """The dense block with what its linears read, for budgets to be tried on."""
        names = {name for trial in trials for name in trial.budgets}
        with self.seen.visit(index, self.dense[index]) as visit:
            groups = shared_inputs(visit, self.backend.statistic, names, advance=advance)
        return BlockTrials(self.backend, self.dense[index], groups, self.grid, self.salience)

    def _of_all(self, found: list[Tried], trials: Sequence[Trial]) -> list[Tried]:
        """What all processes found of the trials of one block, in their order."""
        ranks = self.seen.ranks
        if ranks.of == 1:
            return found
        places = {id(trial): place for place, trial in enumerate(trials)}
        everywhere = ranks.gathered(([(places[id(one.trial)], one) for one in found], self.refusals))
        for _, refusals in everywhere:
            self.refusals.update(refusals)
        numbered = [pair for part, _ in everywhere for pair in part]
        # What came from another process has a trial of its own there: here it is this one.
        return [replace(one, trial=trials[place]) for place, one in sorted(numbered, key=itemgetter(0))]

    def _together(
        self,
        index: int,
        trying: BlockTrials | None,
        trials: Sequence[Trial],
        incoming: States,
        behind: States,
    ) -> TriedTogether:
        """Compress a copy for each of the trials, and measure what their outputs lead to."""
        if trying is None:
            raise TypeError("trials are made on a block whose inputs were looked at")
        made: list[tuple[int, Mapping[str, float], int]] = []
        variants: list[list[Tensor]] = []
        refused: dict[str, str] = {}
        known: dict[frozenset[tuple[str, float]], int] = {}  # whole numbers make the same of several budgets
        with self.damaged.visit(index, trying.site):
            for number, trial in enumerate(trials):
                try:
                    copy = trying.compressed(trial.budgets)
                except RequestError as error:
                    if not trial.is_optional:
                        raise RequestError(f"level {trial.level:g} of {trial.name}: {error}") from error
                    refused[trial.name] = str(error)
                    continue
                variant = known.setdefault(frozenset(copy.budgets.items()), len(variants))
                if variant == len(variants):
                    variants.append(self._outputs(index, copy.site.module, incoming))
                made.append((number, copy.budgets, variant))
        if self.measure.runs_to_the_end:
            self._run_to_the_end(index, variants)
        damages = self.measure.damages(index, behind, variants) if variants else []
        for number, _, variant in made:
            _check_damage(trials[number], damages[variant])
        return TriedTogether(
            tried=tuple(
                TriedLevel(number=number, damage=damages[variant], budgets=dict(done))
                for number, done, variant in made
            ),
            refused=refused,
        )

    def _outputs(self, index: int, module: nn.Module, incoming: States) -> list[Tensor]:
        """What a copy of block `index` makes of the states that reach it, by batch."""
        return [
            self.damaged.run_block(index, batch, hidden.to(self.damaged.device), module)
            for batch, hidden in enumerate(incoming)
        ]

    def _run_to_the_end(self, index: int, variants: Sequence[list[Tensor]]) -> None:
        """Replace states behind block `index` by those behind the last block, in place."""
        for later in range(index + 1, len(self.damaged.structure.blocks)):
            with self.damaged.visit(later):
                for states in variants:
                    for batch, hidden in enumerate(states):
                        states[batch] = self.damaged.run_block(later, batch, hidden)


def _check_damage(trial: Trial, damage: float) -> None:
    if not isfinite(damage):
        raise RequestError(
            f"the damage of {trial.name} at level {trial.level:g} is {damage}: the model or its data type "
            "overflows there; try a level that keeps more, or another --dtype"
        )
