"""The block walk: one pass over the blocks of a model, one block on the device at a time.

The inputs of the first block, and the other arguments of every block, are captured by running the model
with its blocks replaced by stand-ins that only take notes. After that each block is run by itself on the
outputs of the block before it. The estimator and every backend go through here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from owl_compress.errors import RequestError
from owl_compress.families import BlockSite, LinearSite, ModelStructure, parameter_device
from owl_compress.progress import SILENT, Progress
from owl_compress.statistics import Statistic

S = TypeVar("S", bound=Statistic)


class _CaptureDone(Exception):  # noqa: N818 - it ends a forward pass early, nothing went wrong
    """Ends a forward pass once the last stand-in has been called."""


@dataclass(frozen=True)
class _Arguments:
    """What one block is called with besides the hidden states."""

    positional: tuple[Any, ...]
    named: dict[str, Any]


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

    def gather(self, statistic: type[S], *, advance: bool = False) -> tuple[LinearGroup, ...]:
        """Run the block once over all batches and gather `statistic` for the input of each linear.

        Linears that are called with the same tensor share one statistic. With `advance` the outputs of this
        very pass become the next block's inputs.

        Raises:
            RequestError: a linear that no token reached, or inputs with NaN or Inf.
        """
        gathering = _Gathering(statistic)
        with ExitStack() as hooks:
            for linear in self.site.linears:
                hooks.callback(linear.module.register_forward_pre_hook(gathering.hook(linear)).remove)
            self._run(before_each=gathering.start_forward, keep=advance)
        return gathering.groups(self.site)

    def advance(self) -> None:
        """Run the block as it is now; its outputs become the next block's inputs."""
        self._run(before_each=lambda: None, keep=True)

    def _run(self, before_each: Callable[[], None], *, keep: bool) -> None:
        for batch in range(len(self._walk.hidden)):
            before_each()
            outputs = self._walk.run_block(self._index, batch)
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

    def groups(self, site: BlockSite) -> tuple[LinearGroup, ...]:
        for linear in site.linears:
            if linear.name not in self._group_of:
                raise RequestError(f"no token reached {linear.name}: more or other calibration text is needed")
        result = []
        for group, statistic in enumerate(self._statistics):
            members = tuple(linear for linear in site.linears if self._group_of[linear.name] == group)
            if not bool(torch.isfinite(statistic.second_moments).all()):
                raise RequestError(
                    f"the inputs of {members[0].name} hold NaN or Inf: the model or its data type overflows; "
                    "try --dtype float32 or bfloat16"
                )
            result.append(LinearGroup(members, statistic))
        return tuple(result)


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
        self._device = device
        self._arguments: list[list[_Arguments]] = []  # by batch, then by block
        self._on_device: dict[int, Tensor] = {}

    def visits(self, progress: Progress = SILENT, what: str = "blocks") -> Iterator[BlockVisit]:
        """Yield each block while it is on the device; a block left without advancing is advanced."""
        blocks = self.structure.blocks
        with evaluation_mode(self._model), torch.no_grad():
            if self._batches:
                self._capture()
            for index, site in progress.track(enumerate(blocks), len(blocks), what):
                with _on_device(site.module, self._device):
                    visit = BlockVisit(site, self, index)
                    yield visit
                    if self.hidden and visit.must_advance:
                        visit.advance()
            self.hidden.clear()
            self._on_device.clear()

    def run_block(self, index: int, batch: int) -> Tensor:
        """Hidden states of `batch` after block `index`, shape [batch, seq_len, hidden], on the device."""
        arguments = self._arguments[batch][index]
        hidden = self.hidden[batch].to(self._device, non_blocking=True)
        positional = self._to_device(arguments.positional)
        outputs = self.structure.blocks[index].module(hidden, *positional, **self._to_device(arguments.named))
        return outputs if isinstance(outputs, Tensor) else outputs[0]

    def _capture(self) -> None:
        """Fill `hidden` and the arguments of every block, running everything but the blocks."""
        shape = self._output_shape()
        shared = _SharedTensors()
        for batch in self._batches:
            shared.start_batch()
            calls: list[_Arguments] = []
            with _stand_ins(self.structure, lambda hidden, call: self._note(hidden, call, calls, shape)):
                self._forward(batch)
            self._arguments.append([shared.share(call) for call in calls])

    def _note(
        self, hidden: Tensor, call: _Arguments, calls: list[_Arguments], shape: "_OutputShape"
    ) -> Tensor | tuple[Any, ...]:
        if not calls:
            self.hidden.append(hidden.to(self.keep_on))
        calls.append(call)
        if len(calls) == len(self.structure.blocks):
            raise _CaptureDone
        return shape.around(hidden)

    def _output_shape(self) -> "_OutputShape":
        """Learn from one token whether a block returns a tensor or a tuple."""
        found: list[Any] = []

        def on_output(_module: nn.Module, _arguments: Any, outputs: Any) -> None:
            found.append(outputs)
            raise _CaptureDone

        handle = self.structure.blocks[0].module.register_forward_hook(on_output)
        try:
            self._forward(self._batches[0][:1, :1])
        finally:
            handle.remove()
        return _OutputShape(None if isinstance(found[0], Tensor) else tuple(found[0][1:]))

    def _forward(self, token_ids: Tensor) -> None:
        try:
            self._model(input_ids=token_ids.to(parameter_device(self._model)), use_cache=False)
        except _CaptureDone:
            return
        raise RequestError("the model's forward pass never calls its blocks: the architecture is unknown")

    def _to_device(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            # Captured tensors live as long as the walk, so their ids are good keys.
            return self._on_device.setdefault(id(value), value.to(self._device))
        if isinstance(value, tuple | list):
            return type(value)(self._to_device(item) for item in value)
        if isinstance(value, dict):
            return {key: self._to_device(item) for key, item in value.items()}
        return value


@dataclass(frozen=True)
class _OutputShape:
    """How a block wraps its hidden states: bare (None), or in a tuple with these further items."""

    further: tuple[Any, ...] | None

    def around(self, hidden: Tensor) -> Tensor | tuple[Any, ...]:
        return hidden if self.further is None else (hidden, *self.further)


class _SharedTensors:
    """Keeps one copy of tensors that are equal in every batch: masks, positions, rotary embeddings."""

    _REMEMBERED = 16

    def __init__(self) -> None:
        self._known: list[Tensor] = []
        self._this_batch: dict[int, tuple[Tensor, Tensor]] = {}

    def start_batch(self) -> None:
        self._this_batch.clear()

    def share(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._share_tensor(value)
        if isinstance(value, _Arguments):
            return _Arguments(self.share(value.positional), self.share(value.named))
        if isinstance(value, tuple | list):
            return type(value)(self.share(item) for item in value)
        if isinstance(value, dict):
            return {key: self.share(item) for key, item in value.items()}
        return value

    def _share_tensor(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._this_batch:
            kept = next((known for known in self._known if _same(known, tensor)), tensor)
            if kept is tensor:
                self._known = [*self._known, tensor][-self._REMEMBERED :]
            self._this_batch[id(tensor)] = (tensor, kept)
        return self._this_batch[id(tensor)][1]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


@contextmanager
def _stand_ins(
    structure: ModelStructure, note: Callable[[Tensor, _Arguments], Tensor | tuple[Any, ...]]
) -> Iterator[None]:
    """Replace the forward of every block by `note`, called with the hidden states and the other arguments."""

    def stand_in(*positional: Any, **named: Any) -> Tensor | tuple[Any, ...]:
        if positional:
            return note(positional[0], _Arguments(positional[1:], named))
        hidden = named.pop("hidden_states")
        return note(hidden, _Arguments((), named))

    modules = [block.module for block in structure.blocks]
    try:
        for module in modules:
            module.forward = stand_in
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch off dropout and the like, and put every module back as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _on_device(module: nn.Module, device: torch.device) -> Iterator[None]:
    home = parameter_device(module)
    module.to(device)
    try:
        yield
    finally:
        module.to(home)
