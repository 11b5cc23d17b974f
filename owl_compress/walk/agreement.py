"""Whether a walk over the blocks computes what the model does: looked at on one window before any work.

The walk hands the hidden states of each block to the next, with arguments that were captured in advance. A
model that does more than that between its blocks (runs some of them again, hands a second output on, changes
arguments on the way) would be measured and compressed on inputs that never occur. So one window goes through
the model's own forward pass, which is watched, and then through the walk: hidden states behind each block and
inputs of each linear have to be the same in both.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from owl_compress.errors import RequestError
from owl_compress.memory import memory_errors
from owl_compress.models.state import evaluation_mode, is_finite, on_device, parameter_device
from owl_compress.models.structure import BlockSite, ModelStructure, check_compressible, without_linears
from owl_compress.walk.blocks import BlockWalk
from owl_compress.walk.capture import UNSUITED, hidden_states_of, map_tensors

_TOKENS = 32
"""Of the window: how blocks are wired shows on few tokens."""

_POSITIONS = 8
"""Of these tokens, evenly spaced: what is kept of each block stays small, however many blocks there are."""

_HOST = torch.device("cpu")

_ITS_OWN = "model(input_ids=...) has to work before anything is measured: mend the model, or load it again"
"""The remedy where the model fails without any doing of ours."""


def settled_structure(
    model: nn.Module, structure: ModelStructure, token_ids: Tensor, device: torch.device | None = None
) -> ModelStructure:
    """`structure`, once the walk over its blocks is known to be what the model does itself.

    Linears that the model reads without calling them (`dt_proj` of Mamba) are left out and named in
    `uncalled`: what their inputs are cannot be seen. Experts, which a router may pass over in a short text,
    stay. The host holds the hidden states of eight positions for each block.

    Args:
        model: the whole dense model; unchanged afterwards.
        structure: its blocks and linears; one that is settled comes back as it is.
        token_ids: of shape [sequences, seq_len]; the start of the first sequence is looked at.
        device: where blocks are run; by default where the model is.

    Raises:
        RequestError: the model's own forward pass fails, or the walk differs from it by more than rounding;
            the first block that differs is named.
    """
    if structure.is_settled:
        return structure
    device = device or parameter_device(model)
    window = token_ids[:1, :_TOKENS]
    with evaluation_mode(model), torch.no_grad():
        own = _OwnPass(model, structure.blocks, device)
        own.run(window)
        _check_walk(model, structure, window, device, own)
    settled = without_linears(structure, own.uncalled)
    check_compressible(settled)
    return replace(settled, is_settled=True)


class _OwnPass:
    """One forward pass of the model itself, each of its blocks on the device while it runs.

    Afterwards `outputs` holds hidden states [1, positions, hidden] behind each block, on the host, `inputs`
    what the linears read, and `uncalled` the full names of linears that did not run though nothing chooses
    among them.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[BlockSite], device: torch.device) -> None:
        self.outputs: list[Tensor] = []
        self.inputs = _Inputs()
        self._latest: Tensor | None = None
        self._model = model
        self._blocks = blocks
        self._device = device
        self._home = parameter_device(model)
        self._visited = ExitStack()  # the block that runs just now

    def run(self, token_ids: Tensor) -> None:
        name = type(self._model).__name__
        with self._watched(), _failures(lambda: f"the forward pass of {name} itself fails", _ITS_OWN):
            self._model(input_ids=token_ids.to(self._home))
        if len(self.outputs) < len(self._blocks):
            missing = self._blocks[len(self.outputs)].name
            raise RequestError(f"the forward pass of {name} does not call {missing} on text: {UNSUITED}")

    @property
    def uncalled(self) -> frozenset[str]:
        called = {linear for block in self.inputs.blocks for linear in block}
        return frozenset(
            linear.name
            for site in self._blocks
            for linear in site.linears
            if linear.module not in called and not _is_chosen(site, linear.name)
        )

    @contextmanager
    def _watched(self) -> Iterator[None]:
        with ExitStack() as hooks:
            hooks.enter_context(self.inputs.watched(self._blocks))
            hooks.callback(self._leave)
            for block in {site.module for site in self._blocks}:
                before = block.register_forward_pre_hook(self._before_block, with_kwargs=True)
                hooks.callback(before.remove)
                hooks.callback(block.register_forward_hook(self._after_block).remove)
            yield

    def _before_block(self, block: nn.Module, positional: Any, named: Any) -> Any:
        self._check_order(block)
        hidden = positional[0] if positional else named.get("hidden_states")
        if self._latest is not None and not _equal(hidden, self._latest):
            raise RequestError(
                f"{self._blocks[len(self.outputs)].name} is handed something else than the hidden states of "
                f"the block before it: {UNSUITED}"
            )
        self.inputs.begin_block()
        self._visited.enter_context(on_device(block, self._device))
        if self._device == self._home:
            return None
        return map_tensors(positional, self._to_device), map_tensors(named, self._to_device)

    def _leave(self) -> None:
        self._visited.close()

    def _after_block(self, _block: nn.Module, _arguments: Any, outputs: Any) -> Any:
        self._leave()
        self._latest = hidden_states_of(outputs).detach().to(_HOST, copy=True)
        self.outputs.append(_looked_at(self._latest))
        if self._device == self._home:
            return None
        return map_tensors(outputs, lambda tensor: tensor.to(self._home))

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device)

    def _check_order(self, block: nn.Module) -> None:
        """Refuse a block that is not the next of the list."""
        index = len(self.outputs)
        if index < len(self._blocks) and self._blocks[index].module is block:
            return
        names = [site.name for site in self._blocks if site.module is block]
        known = [site.name for site in self._blocks[:index]]
        if names[0] in known:
            raise RequestError(f"{names[0]} runs more than once in a forward pass: {UNSUITED}")
        raise RequestError(
            f"{names[0]} runs before {self._blocks[index].name}, which is earlier in the list: {UNSUITED}"
        )


class _Inputs:
    """What linears read: `blocks` has, for each block begun, sums of squares over tokens, [in] by linear."""

    def __init__(self) -> None:
        self.blocks: list[dict[nn.Module, Tensor]] = []

    @contextmanager
    def watched(self, blocks: Sequence[BlockSite]) -> Iterator[None]:
        """Hold hooks on the linears of `blocks`."""
        linears = {linear.module for site in blocks for linear in site.linears}
        with ExitStack() as hooks:
            for linear in linears:
                hooks.callback(linear.register_forward_pre_hook(self._add).remove)
            yield

    def begin_block(self) -> None:
        """What is read from now on is another block's."""
        self.blocks.append({})

    def _add(self, linear: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if not self.blocks:
            return  # a block is tried before the walk begins
        inputs = arguments[0].detach()
        squares = inputs.reshape(-1, inputs.shape[-1]).double().square().sum(dim=0).to(_HOST)
        self.blocks[-1][linear] = self.blocks[-1].get(linear, 0) + squares


def _check_walk(
    model: nn.Module, structure: ModelStructure, window: Tensor, device: torch.device, own: _OwnPass
) -> None:
    """Refuse a walk in which a block does something else than in the model, or which cannot be done."""
    walk, inputs = BlockWalk(model, structure, [window], device=device), _Inputs()
    with closing(_walked(walk, inputs)) as walked, inputs.watched(structure.blocks):
        for index, (site, expected) in enumerate(zip(structure.blocks, own.outputs, strict=True)):
            difference = _relative_difference(_looked_at(next(walked)), expected)
            if difference > _rounding(site.module, expected):
                raise RequestError(
                    f"{site.name} computes something else within the model than by itself (hidden states "
                    f"differ by {difference:.2g} of their size): {UNSUITED}"
                )
            _check_inputs(site, inputs.blocks[index], own.inputs.blocks[index])


def _check_inputs(
    site: BlockSite, found: Mapping[nn.Module, Tensor], expected: Mapping[nn.Module, Tensor]
) -> None:
    """Refuse a linear that reads something else in the walk, though the block returns the same.

    What a block hands on besides its hidden states may change no more than what a router looks at; on other
    text than this the router would choose otherwise. Experts are left out: of two that are nearly equal
    rounding may choose.
    """
    for linear in site.linears:
        wanted = expected.get(linear.module)
        if wanted is None or _is_chosen(site, linear.name):
            continue
        read = found.get(linear.module, torch.zeros_like(wanted))
        difference = _relative_difference(read, wanted)
        if difference > _rounding(site.module, wanted):
            raise RequestError(
                f"{linear.name} reads something else within the model than in its block by itself (inputs "
                f"differ by {difference:.2g} of their size): {UNSUITED}"
            )


def _walked(walk: BlockWalk, inputs: _Inputs) -> Generator[Tensor, None, None]:
    """Hidden states behind each block; a block that needs more than it is given is refused."""
    name = walk.structure.blocks[0].name
    with closing(walk.visits()) as visits, _failures(lambda: f"{name} cannot be run by itself"):
        for visit in visits:
            name = visit.site.name
            inputs.begin_block()
            visit.advance()
            yield walk.hidden[0]


@contextmanager
def _failures(what: Callable[[], str], remedy: str = UNSUITED) -> Iterator[None]:
    """Turn whatever a foreign forward pass may fail with into a refusal."""
    try:
        with memory_errors("comparing the walk with the model"):
            yield
    except RequestError:
        raise
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise RequestError(f"{what()} ({words[:200]}): {remedy}") from error


def _looked_at(hidden: Tensor) -> Tensor:
    """A few positions of hidden states [1, tokens, hidden], the first and the last one among them."""
    last = hidden.shape[-2] - 1
    positions = torch.linspace(0, last, min(_POSITIONS, last + 1), device=hidden.device).round().long()
    return hidden.index_select(-2, positions)


def _relative_difference(found: Tensor, expected: Tensor) -> float:
    """Euclidean, as a share of `expected`; 0 where that holds NaN or Inf, which is told later, by name."""
    wanted = expected.double()
    if not is_finite(wanted):
        return 0.0
    if found.shape != wanted.shape:
        return float("inf")
    size, distance = wanted.norm(), (found.to(_HOST).double() - wanted).norm()
    return float(distance / size) if size else float(distance)


def _rounding(block: nn.Module, hidden: Tensor) -> float:
    """What rounding may do to hidden states, as a share of their size.

    The same operations on the same numbers are equal to the last bit, except where a device adds up in no
    fixed order. Each such rounding is off by one epsilon of the data type, and blocks amplify it; the square
    root leaves room for a factor of 2,900 in float32 and 11 in bfloat16. What is wired in another way moves
    whole states.
    """
    dtypes = {hidden.dtype, *(parameter.dtype for parameter in block.parameters())}
    return float(max(torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point) ** 0.5)


def _equal(hidden: object, before: Tensor) -> bool:
    if not isinstance(hidden, Tensor) or hidden.shape != before.shape:
        return False
    here = hidden.detach().to(_HOST)
    return bool(((here == before) | (here.isnan() & before.isnan())).all())


def _is_chosen(site: BlockSite, linear: str) -> bool:
    """Whether the linear is in a list inside its block, such as the experts, that a router chooses from."""
    module = site.module
    for part in linear.removeprefix(f"{site.name}.").split("."):
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            return True
        module = module.get_submodule(part)
    return False
