"""Compressed copies of blocks, made on what the dense model reads, and kept while there is room."""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field

from torch import nn

from owl_compress.compression.block_trials import BlockTrials, shared_inputs
from owl_compress.documents.units import Grid
from owl_compress.errors import RequestError
from owl_compress.models.state import on_device, parameter_device
from owl_compress.refinement.workshop import Workshop

_MODELS_KEPT = 3
"""Copies of blocks are kept up to this multiple of the bytes that all dense blocks have."""


@dataclass
class BlockCopies:
    """Makes each compressed block once, and forgets the one that was used least recently when there are many.

    What the backend knows of the inputs of all blocks is kept throughout, on the device.

    Attributes:
        trials: by the name of a block, who makes copies of it.
        limit: bytes of the copies that are kept.
    """

    trials: Mapping[str, BlockTrials]
    limit: int
    _kept: OrderedDict[tuple[object, ...], nn.Module] = field(default_factory=OrderedDict, init=False)
    _n_bytes: int = field(default=0, init=False)
    _settled: dict[tuple[object, ...], Mapping[str, float] | None] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, workshop: Workshop, names: Collection[str], grid: Grid | None) -> "BlockCopies":
        """Of the blocks that hold linears of these `names`, whose inputs are looked at once."""
        walk, backend = workshop.walk(workshop.seen), workshop.backend
        trials = {}
        with closing(walk.visits(workshop.options.progress, "gathering statistics")) as visits:
            for visit in visits:
                if all(linear.name not in names for linear in visit.site.linears):
                    continue
                groups = shared_inputs(visit, backend.statistic, names, advance=True)
                trials[visit.site.name] = BlockTrials(backend, visit.site, groups, grid, workshop.salience)
        workshop.spending.add(cost_of_copies(workshop))
        return cls(trials, _MODELS_KEPT * sum(_bytes(one.module) for one in workshop.structure.blocks))

    def settled(self, block: str, budgets: Mapping[str, float]) -> Mapping[str, float] | None:
        """What is carried out of these budgets of a block; None where they cannot be."""
        key = (block, *budgets.items())
        if key not in self._settled:
            with self._on_device(self.trials[block]):
                try:
                    self._settled[key] = self.trials[block].settled(budgets)
                except RequestError:  # fewer units than must stay
                    self._settled[key] = None
        return self._settled[key]

    def module(self, block: str, budgets: Mapping[str, float]) -> nn.Module:
        """A block compressed to the `budgets` of its linears, where its dense self is.

        Raises:
            RequestError: what the backend refuses.
        """
        key = (block, *budgets.items())
        if (known := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return known
        made = self._made(self.trials[block], budgets)
        self._kept[key] = made
        self._n_bytes += _bytes(made)
        while self._n_bytes > self.limit and len(self._kept) > 1:
            _, forgotten = self._kept.popitem(last=False)
            self._n_bytes -= _bytes(forgotten)
        return made

    def _made(self, known: BlockTrials, budgets: Mapping[str, float]) -> nn.Module:
        # Fresh trials: what they work out once, of all blocks at a time, would be far more than the weights.
        fresh = BlockTrials(known.backend, known.site, known.groups, known.grid, known.salience)
        home = parameter_device(known.site.module)
        with self._on_device(known):
            made = fresh.compressed(budgets).site.module
        return made.to(home)

    @staticmethod
    def _on_device(trials: BlockTrials) -> AbstractContextManager[None]:
        """Inside, the dense block is where its statistics are."""
        statistic = trials.groups[0].statistic
        home = parameter_device(trials.site.module)
        return on_device(trials.site.module, statistic.second_moments.device if statistic else home)


def cost_of_copies(workshop: Workshop) -> float:
    """Tokens that looking at the inputs of all blocks takes."""
    return float(workshop.seen.ids.numel()) if workshop.seen is not None else 0.0


def _bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
