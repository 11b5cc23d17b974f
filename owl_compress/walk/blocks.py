"""The block walk: one pass over the blocks of a model, one block on the device at a time.

The inputs of the first block, and the other arguments of every block, are captured first. After that each
block is run by itself on the outputs of the block before it. The estimator and every backend go through
here.
"""

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from owl_compress.models.state import evaluation_mode, on_device
from owl_compress.models.structure import BlockSite, LinearSite, ModelStructure
from owl_compress.progress import SILENT, Progress
from owl_compress.walk.ahead import reading_ahead
from owl_compress.walk.capture import Arguments, capture, hidden_states_of, map_tensors
from owl_compress.walk.gathering import AllRead, Gathering, LinearGroup, hooked
from owl_compress.walk.input_statistics import Statistic
from owl_compress.walk.ranks import Ranks
from owl_compress.walk.states import InMemory, Keeper, KeepOn, keeper_of, room_beside
from owl_compress.walk.turns import Run, Turns, TurnTaking
from owl_compress.walk.widening import widened, wider_dtype

S = TypeVar("S", bound=Statistic)

_ALONE = Ranks()


@dataclass
class BlockVisit:
    """One block, present on the device for as long as the walk stays with it."""

    site: BlockSite
    _walk: "BlockWalk"
    _index: int
    _advanced: bool = field(default=False, init=False)

    def gather(
        self,
        statistic: type[S],
        names: Collection[str] | None = None,
        *,
        advance: bool = False,
        spared: Collection[str] = (),
    ) -> tuple[LinearGroup, ...]:
        """Run the block once over all batches and gather `statistic` for the input of each linear.

        Linears that are called with the same tensor share one statistic. Linears whose name is not in
        `names` are left out, and so are those of the `spared` that no token reached. With `advance` the
        outputs of this very pass become the next block's inputs; without it a pass ends where the last of
        the linears has been handed its input, once a first batch has shown that each is called once.

        Raises:
            RequestError: another linear that no token reached, or inputs with NaN or Inf.
        """
        linears = [linear for linear in self.site.linears if names is None or linear.name in names]
        gathering = Gathering(statistic, linears, wants_outputs=advance)
        with hooked({linear: gathering.hook(linear) for linear in linears}):
            self._run(before_each=gathering.start_forward, keep=advance)
        gathering.add_up_(self._walk.ranks)
        return gathering.groups(spared)

    def gather_in_turns(
        self, statistic: type[Statistic], names: Collection[str]
    ) -> Generator[LinearGroup, None, None]:
        """Yield linears of `names` that read the same input, with its `statistic`, as they are called.

        What was yielded may be changed before the next is asked for, whose inputs are those behind the
        changed ones. Where memory holds all batches in the middle of the block, a single pass serves all, and
        its outputs become the next block's inputs; else each turn takes a pass up to it, with the same
        numbers. In the end come linears without a turn, together: not every batch calls them once, and in the
        same order. Close it where it may be left early.

        Raises:
            RequestError: a linear that no token reached, or inputs with NaN or Inf.
        """
        walk, linears = self._walk, [linear for linear in self.site.linears if linear.name in names]
        by_name = {linear.name.removeprefix(self.site.name): linear for linear in linears}
        with self._widened():
            found = walk.turns(self.site, by_name, partial(self._run_batch, 0))
        turns = [[by_name[name] for name in turn] for turn in found.names]
        taking = {linear.name for turn in turns for linear in turn}
        left = [linear for linear in linears if linear.name not in taking]
        if walk.holds_passes(found):
            goes_on = not left and self._index + 1 < len(walk.structure.blocks)
            left += yield from self._in_one_pass(statistic, turns, goes_on=goes_on)
        else:
            for turn in turns:
                for group in self.gather(statistic, [linear.name for linear in turn]):
                    yield replace(group, has_turn=True)
        if left:
            yield from self.gather(statistic, [linear.name for linear in left])

    def _in_one_pass(
        self, statistic: type[Statistic], turns: Sequence[Sequence[LinearSite]], *, goes_on: bool
    ) -> Generator[LinearGroup, None, list[LinearSite]]:
        """Yield each of the `turns`, and return linears that have had none; `goes_on` to the next block."""
        runs = [partial(self._run_batch, batch) for batch in range(len(self._walk.hidden))]
        passes = TurnTaking(turns, runs, self._walk.ranks, self._widened)
        with closing(passes.groups(statistic, self._keep if goes_on else None)) as groups:
            yield from groups
        self._advanced = goes_on and not passes.left
        return passes.left

    def advance(self) -> None:
        """Run the block as it is now; its outputs become the next block's inputs."""
        self._run(before_each=lambda: None, keep=True)

    def _run(self, before_each: Callable[[], None], *, keep: bool) -> None:
        walk = self._walk
        with self._widened():
            for batch, hidden in enumerate(walk.hidden):
                before_each()
                try:
                    outputs = self._run_batch(batch)
                except AllRead:
                    walk.keeper.let_go(hidden)
                    continue
                if keep:
                    self._keep(batch, outputs)
                walk.keeper.let_go(walk.hidden[batch])
        self._advanced = self._advanced or keep

    def _run_batch(self, batch: int) -> Tensor:
        """What the block makes of a batch; inside `_widened`."""
        return self._walk.run_block(self._index, batch, module=self.site.module, dtype=self._dtype)

    def _keep(self, batch: int, outputs: Tensor) -> None:
        """Have the outputs of a batch be the next block's inputs."""
        hidden = self._walk.hidden
        hidden[batch] = self._walk.keeper.replace(hidden[batch], outputs)

    def _widened(self) -> AbstractContextManager[None]:
        return widened(self.site.module, self._dtype)

    @cached_property
    def _dtype(self) -> torch.dtype | None:
        """The type that the block is computed in, where its own is slow."""
        return wider_dtype(self.site.module, self._walk.device) if self._walk.may_widen else None

    @property
    def number(self) -> int:
        """Of the block, counted from 1: so many are behind once it has been run."""
        return self._index + 1

    @property
    def must_advance(self) -> bool:
        """Whether a later block still waits for the outputs of this one."""
        return not self._advanced and self._index + 1 < len(self._walk.structure.blocks)


class BlockWalk:
    """A walk over the blocks of `model`, in order.

    Args:
        model: the model; its weights stay where they are, apart from the block being visited.
        structure: its blocks and linears.
        batches: token ids, each of shape [batch, seq_len]; empty for a walk that runs nothing.
        device: where blocks are run.
        keep_on: where the activations between blocks are kept; by default on the device if they leave most of
            its memory free, else on the host. In a file, `hidden` are parts of it, which are written over.
        may_widen: whether blocks may be computed in float32 where that is quicker (see `widening`): not where
            what comes out is held against another run of the model, to the last digit.
        ranks: processes that walk together, each on `batches` of its own: what is gathered is of all of them.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: ModelStructure,
        batches: Sequence[Tensor],
        *,
        device: torch.device,
        keep_on: KeepOn = None,
        may_widen: bool = False,
        ranks: Ranks = _ALONE,
    ) -> None:
        self.may_widen = may_widen
        self.ranks = ranks
        self.structure = structure
        self.keeper: Keeper = InMemory(device)
        self._keep_on = keep_on
        self.hidden: list[Tensor] = []
        self._model = model
        self._batches = batches
        self.device = device
        self._arguments: list[tuple[Arguments, ...]] = []  # by batch, then by block
        self._copies = _Copies(device)
        self._turns: dict[tuple[object, ...], Turns] = {}

    @classmethod
    def together(
        cls, model: nn.Module, structure: ModelStructure, batches: Sequence[Tensor], **rest: Any
    ) -> "BlockWalk":
        """A walk of all processes that have joined, each on its share of `batches`; alone, on all of them.

        Raises:
            RequestError: there are fewer batches than processes.
        """
        ranks = Ranks.current()
        mine = ranks.mine(batches, "batches") if batches else ()
        return cls(model, structure, mine, ranks=ranks, **rest)

    def visits(
        self,
        progress: Progress = SILENT,
        what: str = "blocks",
        behind: Callable[["BlockWalk"], int] = lambda _: 0,
    ) -> Generator[BlockVisit, None, None]:
        """Yield each block while it is on the device; a block left without advancing is advanced.

        Before the first of them, `behind` may have the walk stand where it was once: behind so many blocks.

        Close the generator where it may be left early (`contextlib.closing`): that is what takes the last
        block home and puts the model's modes back.
        """
        with self.prepared(), closing(self.in_order(progress, what, behind(self))) as visits:
            for visit in visits:
                yield visit
                if self.hidden and visit.must_advance:
                    visit.advance()

    def in_order(self, progress: Progress, what: str, first: int = 0) -> Generator[BlockVisit, None, None]:
        """Yield each block from the `first` on while it is on the device; only inside `prepared`.

        While one is worked on the next is read, where it has to come from elsewhere. Close it like `visits`.
        """
        blocks = self.structure.blocks
        with reading_ahead([site.module for site in blocks], self.device) as ahead:
            for index in progress.track(range(first, len(blocks)), len(blocks) - first, what):
                with on_device(blocks[index].module, self.device, ahead.take(index)):
                    ahead.start(index + 1)
                    yield BlockVisit(blocks[index], self, index)

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Inside, the blocks can be visited in any order: their arguments are captured, no gradients kept."""
        try:
            with evaluation_mode(self._model), torch.no_grad():
                if self._batches:
                    self._capture()
                yield
        finally:
            self.hidden.clear()
            self.keeper = InMemory(self.device)
            self._arguments.clear()

    @contextmanager
    def visit(self, index: int, site: BlockSite | None = None) -> Iterator[BlockVisit]:
        """Block `index`, on the device for as long as this lasts; only inside `prepared`.

        Another copy of this block, at `site`, may stand in its place.
        """
        site = site or self.structure.blocks[index]
        with on_device(site.module, self.device):
            yield BlockVisit(site, self, index)

    def run_block(
        self,
        index: int,
        batch: int,
        hidden: Tensor | None = None,
        module: nn.Module | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Hidden states of `batch` after block `index`, shape [batch, seq_len, hidden], on the device.

        The block reads `hidden`, or by default the states that the walk is at. `module` is another copy of
        this block, on the device too, to run in its place. `dtype` is the type that the block was widened to.
        """

        def copy(tensor: Tensor) -> Tensor:
            return self._copies.of(tensor, dtype if tensor.is_floating_point() else None)

        arguments: Arguments = map_tensors(self._arguments[batch][index], copy)
        if hidden is None:
            hidden = self.hidden[batch].to(self.device, dtype, non_blocking=True)
        block = module or self.structure.blocks[index].module
        return hidden_states_of(block(hidden, *arguments.positional, **arguments.named))

    def turns(self, site: BlockSite, linears: Mapping[str, LinearSite], run: Run) -> Turns:
        """The turns of the `linears`, which have these names in their block; `run` is a pass through it.

        Looked at once for all blocks of a kind. Of several processes all have the same; there are none where
        one of them finds others.
        """
        kind = type(site.module), *linears
        if kind not in self._turns:
            found = Turns.of([*linears.values()], site.module, run)
            local = tuple(tuple(name.removeprefix(site.name) for name in turn) for turn in found.names)
            everywhere = self.ranks.gathered(local) if self.ranks.of > 1 else [local]
            self._turns[kind] = replace(found, names=local if len({*everywhere}) == 1 else ())
        return self._turns[kind]

    def holds_passes(self, turns: Turns) -> bool:
        """Whether there is room for all batches in the middle of a block; of several processes, in each."""
        n_tokens = sum(states.shape[:-1].numel() for states in self.hidden)
        held = turns.held_bytes * n_tokens // self.hidden[0].shape[:-1].numel()
        room = room_beside(self.device)
        fits = turns.may_stand and self.keeper.is_on(self.device) and (room is None or held <= room)
        return fits if self.ranks.of == 1 else all(self.ranks.gathered(fits))

    def _capture(self) -> None:
        for captured in capture(self._model, self.structure.blocks, self._batches):
            if not self.hidden:
                self.keeper = keeper_of(self._keep_on, self._batches, captured.hidden, self.device)
            self.hidden.append(self.keeper.keep(captured.hidden))
            self.keeper.let_go(self.hidden[-1])
            self._arguments.append(captured.arguments)


class _Copies:
    """Copies of captured tensors on the device: masks and rotary embeddings, few and often used."""

    _REMEMBERED = 16

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies: dict[tuple[int, torch.dtype | None], tuple[Tensor, Tensor]] = {}

    def of(self, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        """`tensor` there, as `dtype`, or as it is."""
        key = id(tensor), dtype
        known = self._copies.get(key)
        if known is not None:
            return known[1]
        copy = tensor.to(self._device, dtype)
        if copy is not tensor:
            if len(self._copies) == self._REMEMBERED:
                self._copies.clear()
            self._copies[key] = (tensor, copy)  # holding `tensor` keeps its id from being reused
        return copy
