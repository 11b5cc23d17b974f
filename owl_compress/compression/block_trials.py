"""One dense block compressed at several budgets, each on a copy of its own: the block itself stays dense."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from math import fsum
from typing import Any

from owl_compress.compression.contract import Backend
from owl_compress.compression.tasks import BlockTask, GroupTask, LinearOutcome, LinearTask
from owl_compress.documents.plan import AllocatorRecord, LinearBudget, Plan
from owl_compress.documents.units import Grid, Unit
from owl_compress.models.anatomy import below
from owl_compress.models.structure import BlockSite, LinearSite
from owl_compress.walk.blocks import BlockVisit
from owl_compress.walk.gradients import Salience
from owl_compress.walk.input_statistics import Statistic


@dataclass(frozen=True)
class SharedInput:
    """Linears of a block, by name, that read the same input, and its statistic; None if nobody needs one."""

    linears: tuple[str, ...]
    statistic: Statistic | None


def shared_inputs(
    visit: BlockVisit, statistic: type[Statistic] | None, names: Collection[str], *, advance: bool
) -> list[SharedInput]:
    """What the linears of these `names` read in one block, gathered where there is a `statistic` to gather.

    With `advance` the pass that gathers also feeds the next block. Without a statistic nothing is run, and
    every linear is a group of its own.
    """
    if statistic is None:
        return [SharedInput((linear.name,), None) for linear in visit.site.linears if linear.name in names]
    gathered = visit.gather(statistic, names, advance=advance)
    return [
        SharedInput(tuple(linear.name for linear in group.linears), group.statistic) for group in gathered
    ]


@dataclass(frozen=True)
class CompressedBlock:
    """A compressed copy of a block; `budgets` are those that were carried out, whole numbers made of them."""

    site: BlockSite
    budgets: Mapping[str, float]
    outcomes: Sequence[LinearOutcome]


@dataclass(frozen=True)
class BlockTrials:
    """Tries budgets on copies of a dense block; what does not depend on budgets is worked out once.

    Attributes:
        backend: who compresses, settled.
        site: the block, on the device.
        groups: its linears by their inputs, with the statistic that the backend declares; without a statistic
            every linear is a group of its own.
        grid: of the budgets, or None.
        salience: of its linears, for a backend that reads gradients.
    """

    backend: Backend
    site: BlockSite
    groups: Sequence[SharedInput]
    grid: Grid | None
    salience: Mapping[str, Salience]
    _memos: dict[int, dict[Hashable, Any]] = field(default_factory=dict, init=False, repr=False)

    def compressed(self, budgets: Mapping[str, float]) -> "CompressedBlock":
        """A copy of the block in which the linears named in `budgets` meet them.

        A backend that looks at the whole model first looks at these linears alone.

        Raises:
            RequestError: what the backend refuses.
        """
        copy = self._copy()
        carried_out, decision = self._surveyed(copy, budgets)
        task = replace(self._task(copy, carried_out), decision=decision)
        done = self.backend.compress_block_(task)
        survey = self.backend.survey
        # What a survey asks of single linears is no level of the part: that is what they have together.
        return CompressedBlock(copy, budgets if survey and survey.restates else carried_out, done)

    def settled(self, budgets: Mapping[str, float]) -> Mapping[str, float]:
        """What is carried out where `budgets` are asked for: whole units, if the backend makes these.

        Raises:
            RequestError: what the backend refuses.
        """
        return self._surveyed(self.site, budgets)[0]

    def _surveyed(self, site: BlockSite, budgets: Mapping[str, float]) -> tuple[Mapping[str, float], object]:
        """What is carried out, and what a survey wants the backend to know of it."""
        if (survey := self.backend.survey) is None:
            return budgets, None
        survey.see(self._task(site, budgets))
        surveyed = survey.redistribute(self._plan(budgets))
        carried_out = {budget.name: budget.value for budget in surveyed.plan.budgets}
        return carried_out, surveyed.decisions.get(self.site.name)

    def _copy(self) -> BlockSite:
        module = deepcopy(self.site.module)

        def moved(linear: LinearSite) -> LinearSite:
            return replace(linear, module=module.get_submodule(below(self.site, linear.name)))

        return replace(
            self.site,
            module=module,
            linears=tuple(map(moved, self.site.linears)),
            emptied=tuple(map(moved, self.site.emptied)),
        )

    def _task(self, site: BlockSite, budgets: Mapping[str, float]) -> BlockTask:
        sites = {linear.name: linear for linear in site.linears}
        groups = []
        for index, group in enumerate(self.groups):
            members = [name for name in group.linears if name in budgets]
            if members:
                tasks = (LinearTask(sites[name], budgets[name], self.salience.get(name)) for name in members)
                memo = self._memos.setdefault(index, {})
                groups.append(GroupTask(tuple(tasks), group.statistic, memo))
        return BlockTask(site, tuple(groups), self.grid)

    def _plan(self, budgets: Mapping[str, float]) -> Plan:
        """The budgets of some linears of one block as a plan, for a survey to make whole numbers of."""
        sizes = {linear.name: linear.n_weights for linear in self.site.linears}
        rows = tuple(
            LinearBudget(name=name, block=self.site.name, n_weights=sizes[name], value=value)
            for name, value in budgets.items()
        )
        values = [row.value for row in rows]
        is_bits = self.backend.unit is Unit.BITS
        return Plan(
            unit=self.backend.unit,
            target=fsum(row.value * row.n_weights for row in rows) / sum(row.n_weights for row in rows),
            grid=self.grid,
            low=min(values) if is_bits else 0.0,
            high=max(values) if is_bits else 1.0,
            allocator=AllocatorRecord(name="trial"),
            report="trial",
            budgets=rows,
        )
