"""The block walk: one pass over the blocks of a model, one block on the device at a time.

The inputs of the first block, and the other arguments of every block, are captured first. After that each
block is run by itself on the outputs of the block before it. The estimator and every backend go through
here.
"""

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from owl_compress.errors import RequestError
from owl_compress.models.state import evaluation_mode, on_device
from owl_compress.models.structure import BlockSite, LinearSite, ModelStructure
from owl_compress.progress import SILENT, Progress
from owl_compress.walk.capture import Arguments, capture, hidden_states_of, map_tensors
from owl_compress.walk.input_statistics import Statistic

S = TypeVar("S", bound=Statistic)


@dataclass(frozen=True)
class LinearGroup:
    """Linears of one block that read the same input tensor, with the statistic of that input."""

    linears: tuple[LinearSite, ...]
    statistic: Statistic


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
        outputs of this very pass become the next block's inputs.

        Raises:
            RequestError: another linear that no token reached, or inputs with NaN or Inf.
        """
        linears = [linear for linear in self.site.linears if names is None or linear.name in names]
        gathering = _Gathering(statistic)
        with ExitStack() as hooks:
            for linear in linears:
                hooks.callback(linear.module.register_forward_pre_hook(gathering.hook(linear)).remove)
            self._run(before_each=gathering.start_forward, keep=advance)
        return gathering.groups(linears, spared)

    def advance(self) -> None:
        """Run the block as it is now; its outputs become the next block's inputs."""
        self._run(before_each=lambda: None, keep=True)

    def _run(self, before_each: Callable[[], None], *, keep: bool) -> None:
        for batch in range(len(self._walk.hidden)):
            before_each()
            outputs = self._walk.run_block(self._index, batch, module=self.site.module)
            if keep:
                self._walk.hidden[batch] = outputs.to(self._walk.keep_on)
        self._advanced = self._advanced or keep

    @property
    def must_advance(self) -> bool:
        """Whether a later block still waits for the outputs of this one."""
        return not self._advanced and self._index + 1 < len(self._walk.structure.blocks)


class _Gathering:
    """Finds out which linears read the same tensor, and feeds one statistic per tensor."""

    def __init__(self, statistic: type[Statistic]) -> None:
        self._kind = statistic
        self._statistics: list[Statistic] = []
        self._group_of: dict[str, int] = {}
        # Inputs seen in the forward pass under way; the reference keeps a tensor's id from being reused.
        self._seen: dict[int, tuple[Tensor, int]] = {}

    def start_forward(self) -> None:
        self._seen.clear()

    def hook(self, linear: LinearSite) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def on_input(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            inputs = arguments[0]
            if id(inputs) in self._seen:
                self._group_of.setdefault(linear.name, self._seen[id(inputs)][1])
                return
            group = self._group_of.get(linear.name)
            if group is None:
                group = self._group_of[linear.name] = len(self._statistics)
                self._statistics.append(self._kind.empty(inputs.shape[-1], inputs.device))
            self._seen[id(inputs)] = (inputs, group)
            self._statistics[group].add(inputs.reshape(-1, inputs.shape[-1]))  # [..., in] -> [tokens, in]

        return on_input

    def groups(self, linears: Sequence[LinearSite], spared: Collection[str]) -> tuple[LinearGroup, ...]:
        self._seen.clear()
        for linear in linears:
            if linear.name not in self._group_of and linear.name not in spared:
                raise RequestError(unreached(linear))
        result = []
        for group, statistic in enumerate(self._statistics):
            members = tuple(linear for linear in linears if self._group_of.get(linear.name) == group)
            if not bool(torch.isfinite(statistic.second_moments).all()):
                raise RequestError(
                    f"the inputs of {members[0].name} hold NaN or Inf: the model or its data type overflows; "
                    "try --dtype float32 or bfloat16"
                )
            result.append(LinearGroup(members, statistic))
        return tuple(result)


def unreached(linear: LinearSite) -> str:
    """Why nothing is known of a linear, and what can be done."""
    remedy = "more or other calibration text is needed, or leave it out with --skip"
    return f"no token reached {linear.name}: {remedy}"


class BlockWalk:
    """A walk over the blocks of `model`, in order.

    Args:
        model: the model; its weights stay where they are, apart from the block being visited.
        structure: its blocks and linears.
        batches: token ids, each of shape [batch, seq_len]; empty for a walk that runs nothing.
        device: where blocks are run.
        keep_on: where the activations between blocks are kept.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: ModelStructure,
        batches: Sequence[Tensor],
        *,
        device: torch.device,
        keep_on: torch.device | None = None,
    ) -> None:
        self.structure = structure
        self.keep_on = keep_on or device
        self.hidden: list[Tensor] = []
        self._model = model
        self._batches = batches
        self.device = device
        self._arguments: list[tuple[Arguments, ...]] = []  # by batch, then by block
        self._copies = _DeviceCopies(device)

    def visits(self, progress: Progress = SILENT, what: str = "blocks") -> Generator[BlockVisit, None, None]:
        """Yield each block while it is on the device; a block left without advancing is advanced.

        Close the generator where it may be left early (`contextlib.closing`): that is what takes the last
        block home and puts the model's modes back.
        """
        blocks = self.structure.blocks
        with self.prepared():
            for index in progress.track(range(len(blocks)), len(blocks), what):
                with self.visit(index) as visit:
                    yield visit
                    if self.hidden and visit.must_advance:
                        visit.advance()

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
        self, index: int, batch: int, hidden: Tensor | None = None, module: nn.Module | None = None
    ) -> Tensor:
        """Hidden states of `batch` after block `index`, shape [batch, seq_len, hidden], on the device.

        The block reads `hidden`, or by default the states that the walk is at. `module` is another copy of
        this block, on the device too, to run in its place.
        """
        arguments: Arguments = map_tensors(self._arguments[batch][index], self._copies.of)
        if hidden is None:
            hidden = self.hidden[batch].to(self.device, non_blocking=True)
        block = module or self.structure.blocks[index].module
        return hidden_states_of(block(hidden, *arguments.positional, **arguments.named))

    def _capture(self) -> None:
        for captured in capture(self._model, self.structure.blocks, self._batches):
            self.hidden.append(captured.hidden.to(self.keep_on))
            self._arguments.append(captured.arguments)


class _DeviceCopies:
    """Copies of captured tensors on the device: masks and rotary embeddings, few and often used."""

    _REMEMBERED = 16

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, tensor: Tensor) -> Tensor:
        known = self._copies.get(id(tensor))
        if known is not None:
            return known[1]
        copy = tensor.to(self._device)
        if copy is not tensor:
            if len(self._copies) == self._REMEMBERED:
                self._copies.clear()
            self._copies[id(tensor)] = (tensor, copy)  # holding `tensor` keeps its id from being reused
        return copy
