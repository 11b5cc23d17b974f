"""Compressed copies of blocks, made on what the dense model reads, and kept while there is room.

Where the backend solves linears that share an input apart from the others, these are what is kept, as in the
database of levels of EvoPress (arXiv 2410.14649): a block is put together of them, whatever its levels. Else
it is the block as a whole.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import nn

from owl_compress.compression.block_trials import BlockTrials, shared_inputs
from owl_compress.compression.demands import solves_apart
from owl_compress.documents.units import Grid
from owl_compress.errors import RequestError
from owl_compress.models.anatomy import below
from owl_compress.models.state import on_device, parameter_device
from owl_compress.refinement.workshop import Workshop

_MODELS_KEPT = 3
"""Copies are kept up to this multiple of the bytes that all dense blocks have."""

_STATISTICS = "statistics for block copies"
"""What is spent on them once."""

_Key = tuple[str, tuple[tuple[str, float], ...]]
"""A block, and the budgets of some of its linears."""


@dataclass
class BlockCopies:
    """Compresses each piece of a block once, and forgets the one least recently used when there are many.

    What the backend knows of the inputs of all blocks is kept throughout, on the device.

    Attributes:
        trials: by the name of a block, who makes copies of it.
        limit: bytes of the copies that are kept.
        device: where blocks are compressed.
    """

    trials: Mapping[str, BlockTrials]
    limit: int
    device: torch.device
    _kept: OrderedDict[_Key, Mapping[str, nn.Module]] = field(default_factory=OrderedDict, init=False)
    _n_bytes: int = field(default=0, init=False)
    _settled: dict[_Key, Mapping[str, float] | None] = field(default_factory=dict, init=False)

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
        workshop.spending.add_once(_STATISTICS, cost_of_copies(workshop))
        limit = _MODELS_KEPT * _bytes(one.module for one in workshop.structure.blocks)
        return cls(trials, limit, workshop.device)

    def settled(self, block: str, budgets: Mapping[str, float]) -> Mapping[str, float] | None:
        """What is carried out of these budgets of a block; None where they cannot be."""
        key = _key(block, budgets)
        if key not in self._settled:
            with on_device(self.trials[block].site.module, self.device):
                try:
                    self._settled[key] = self.trials[block].settled(budgets)
                except RequestError:  # fewer units than must stay
                    self._settled[key] = None
        return self._settled[key]

    def module(self, block: str, budgets: Mapping[str, float]) -> nn.Module:
        """A block compressed to the `budgets` of its linears, where its dense self is.

        What is not compressed of it may be the dense block's very own: it is to be run, not changed.

        Raises:
            RequestError: what the backend refuses.
        """
        trials = self.trials[block]
        if not solves_apart(trials.backend):
            return self._piece(trials, budgets)[""]
        linears: dict[str, nn.Module] = {}
        for group in trials.groups:
            own = {name: budgets[name] for name in group.linears if name in budgets}
            linears |= self._piece(trials, own) if own else {}
        return _put_together(trials.site.module, linears)

    def _piece(self, trials: BlockTrials, budgets: Mapping[str, float]) -> Mapping[str, nn.Module]:
        """Linears with these budgets, by their names below the block; or the block as a whole, named ""."""
        key = _key(trials.site.name, budgets)
        if (known := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return known
        made = self._made(trials, budgets)
        self._kept[key] = made
        self._n_bytes += _bytes(made.values())
        while self._n_bytes > self.limit and len(self._kept) > 1:
            _, forgotten = self._kept.popitem(last=False)
            self._n_bytes -= _bytes(forgotten.values())
        return made

    def _made(self, known: BlockTrials, budgets: Mapping[str, float]) -> Mapping[str, nn.Module]:
        # Fresh trials: what they work out once, of all blocks at a time, would be far more than the weights.
        fresh = BlockTrials(known.backend, known.site, known.groups, known.grid, known.salience)
        home = parameter_device(known.site.module)
        with on_device(known.site.module, self.device):
            made = fresh.compressed(budgets).site.module
        names = [below(known.site, name) for name in budgets] if solves_apart(known.backend) else [""]
        return {name: made.get_submodule(name).to(home) for name in names}


def cost_of_copies(workshop: Workshop) -> float:
    """Tokens that looking at the inputs of all blocks takes; none once that is counted."""
    n_tokens = float(workshop.seen.ids.numel()) if workshop.seen is not None else 0.0
    return 0.0 if workshop.spending.is_counted(_STATISTICS) else n_tokens


def _key(block: str, budgets: Mapping[str, float]) -> _Key:
    return block, tuple(budgets.items())


def _put_together(block: nn.Module, linears: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of `block` with these `linears` in it, by name; all other tensors are its own."""
    taken: dict[int, object] = {id(tensor): tensor for tensor in (*block.parameters(), *block.buffers())}
    for name, linear in linears.items():
        dense = block.get_submodule(name)
        taken[id(dense)] = linear
        # A weight that another module of the block shares is compressed there, too.
        taken |= {id(one): linear.get_parameter(own) for own, one in dense.named_parameters()}
    return deepcopy(block, taken)


def _bytes(modules: Iterable[nn.Module]) -> int:
    tensors = (one for module in modules for one in module.parameters())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
