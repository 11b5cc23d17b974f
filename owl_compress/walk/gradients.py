"""First-order importance of weights: w * dL/dw, summed along rows and columns, one block at a time.

The blocks run forward once, and what goes into each is kept on the host. The gradient of the loss then goes
back block by block: each is run again with gradients, and lets go of them before the one in front of it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from owl_compress.data.windows import TokenWindows
from owl_compress.errors import RequestError
from owl_compress.memory import memory_errors
from owl_compress.models.state import is_finite, parameter_device
from owl_compress.models.structure import BlockSite, LinearSite, ModelStructure, in_rows
from owl_compress.progress import SILENT, Progress
from owl_compress.walk.blocks import BlockWalk
from owl_compress.walk.capture import Tail
from owl_compress.walk.gathering import unreached

_HOST = torch.device("cpu")


@dataclass(frozen=True)
class Salience:
    """Sums of w_ij * dL/dw_ij over one linear's weight [out, in], float64 on the host.

    `out_element` [out] and `in_element` [in] sum absolute values, `out_vector` and `in_vector` signed ones.
    """

    out_element: Tensor
    in_element: Tensor
    out_vector: Tensor
    in_vector: Tensor


def measure_salience(
    model: nn.Module,
    structure: ModelStructure,
    calibration: TokenWindows,
    *,
    names: Collection[str] | None = None,
    device: torch.device | None = None,
    batch_size: int = 1,
    progress: Progress = SILENT,
) -> Mapping[str, Salience]:
    """Salience of the linears of `model`, by their names: what its weights are worth, to first order.

    L is the mean negative log-likelihood of the next token over all windows, and the salience of a weight is
    w * dL/dw: minus the first-order change of L when the weight becomes zero (LLM-Pruner, arXiv 2305.11627).
    "Element" sums follow the first-order term of its eq. 4 and 5, the absolute values of single weights;
    "vector" sums that of eq. 3, where signs count inside a row or column. The published code goes back
    through the whole model at once and takes the mean over a single batch; the numbers are the same.

    The device holds one block, the float32 gradients of its linears and one batch; the host holds what goes
    into every block, blocks * tokens * hidden values, so that few and short windows are the thing to give
    (ten of 64 tokens, as published). The tail of the model runs where the model is. A weight that several
    blocks share gets the gradient of its uses in all blocks; a use outside them, such as a tied head, does
    not count.

    Args:
        model: a causal language model; unchanged afterwards, its parameters have the `grad` they had.
        structure: its blocks and linears.
        calibration: token windows, shape [sequences, seq_len].
        names: of the linears that are wanted; by default all.
        device: where blocks are run; by default where the model is.
        batch_size: sequences per forward pass; changes nothing but speed, up to rounding.
        progress: told about every block, forward and back.

    Raises:
        RequestError: NaN or Inf in weights, activations or gradients, naming the linear or block; a linear
            that no token reached; out of memory.
    """
    batches = calibration.batches(batch_size)
    walk = BlockWalk(model, structure, batches, device=device or parameter_device(model), keep_on=_HOST)
    with memory_errors("taking gradients"), without_gradients(model), walk.prepared():
        inputs = run_forward(walk, progress)
        upstream = _gradients_of_the_tail(model, structure.blocks, batches, walk.hidden)
        wanted = frozenset(structure.linear_sizes if names is None else names)
        n_predictions = len(calibration) * (_seq_len(batches) - 1)
        return _Backward(walk, inputs, upstream, wanted, n_predictions=n_predictions).run(progress)


def _seq_len(batches: Sequence[Tensor]) -> int:
    return batches[0].shape[1]


@contextmanager
def without_gradients(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient or has one; what they had comes back."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(False)
            parameter.grad = None
        yield
    finally:
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient


def run_forward(walk: BlockWalk, progress: Progress) -> list[list[Tensor]]:
    """What goes into each block, by block and batch, on the host; `walk.hidden` is what the last returned."""
    inputs = []
    n_blocks = len(walk.structure.blocks)
    for index in progress.track(range(n_blocks), n_blocks, "running blocks"):
        inputs.append(list(walk.hidden))
        with walk.visit(index) as visit:
            visit.advance()
        if not all(is_finite(hidden) for hidden in walk.hidden):
            raise RequestError(_broken(walk.structure.blocks[index]))
    return inputs


def _broken(site: BlockSite) -> str:
    for linear in site.linears:
        if not is_finite(linear.weight):
            return f"the weights of {linear.name} hold NaN or Inf: check the checkpoint"
    return (
        f"the outputs of {site.name} hold NaN or Inf: the model or its data type overflows; "
        "try --dtype float32 or bfloat16"
    )


def _gradients_of_the_tail(
    model: nn.Module, blocks: Sequence[BlockSite], batches: Sequence[Tensor], hidden: Sequence[Tensor]
) -> list[Tensor]:
    """dL/d(hidden) behind the last block, by batch, on the host; L here is the summed loss of the batch.

    Summed, because the gradients of a mean over many tokens would underflow in float16.
    """
    place = parameter_device(model)
    tail = Tail(model, blocks, batches[0])
    gradients = []
    for token_ids, outputs in zip(batches, hidden, strict=True):
        leaf = outputs.to(place).detach().requires_grad_()
        with torch.enable_grad():
            logits = tail.logits(token_ids, leaf)[:, :-1].float()
            targets = token_ids[:, 1:].to(logits.device)
            # [batch, seq_len - 1, vocabulary] -> [predictions, vocabulary]
            loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, leaf)
        gradients.append(gradient.to(_HOST))
    return gradients


class _Backward:
    """The way back through the blocks, from the gradients behind the last one."""

    def __init__(
        self,
        walk: BlockWalk,
        inputs: list[list[Tensor]],
        upstream: list[Tensor],
        wanted: Collection[str],
        *,
        n_predictions: int,
    ) -> None:
        self._walk = walk
        self._inputs = inputs
        self._upstream = upstream
        self._n_predictions = n_predictions
        self._wanted = [linear for linear in walk.structure.linears if linear.name in wanted]
        self._owned = {id(linear.module.weight) for linear in self._wanted}
        # Gradients of weights that belong to a block further in front: some models share weights.
        self._pending: dict[int, Tensor] = {}

    def run(self, progress: Progress) -> dict[str, Salience]:
        """Salience by the name of the linear, in the model's order."""
        found: dict[str, Salience] = {}
        blocks = self._walk.structure.blocks
        for index in progress.track(reversed(range(len(blocks))), len(blocks), "taking gradients"):
            found |= self._through_block(index)
        return {linear.name: found[linear.name] for linear in self._wanted}

    def _through_block(self, index: int) -> dict[str, Salience]:
        """Take the gradients of one block over all batches, and put those of its inputs upstream."""
        with self._walk.visit(index) as visit:
            parameters = [p for p in visit.site.module.parameters() if id(p) in self._owned]
            with _summed_gradients(parameters) as gradients:
                for batch in range(len(self._upstream)):
                    self._through_batch(index, batch, parameters)
            self._inputs[index].clear()
            for parameter in parameters:
                self._add_pending(parameter, gradients)
            found = {
                linear.name: self._reduced(linear, gradients)
                for linear in visit.site.linears
                if id(linear.module.weight) in self._owned
            }
        self._pending |= {identity: gradient.to(_HOST) for identity, gradient in gradients.items()}
        return found

    def _through_batch(self, index: int, batch: int, parameters: Sequence[nn.Parameter]) -> None:
        site, upstream = self._walk.structure.blocks[index], self._upstream[batch]
        place = parameter_device(site.module)
        with torch.enable_grad():
            leaf = self._inputs[index][batch].to(place).detach().requires_grad_()
            outputs = self._walk.run_block(index, batch, leaf)
            torch.autograd.backward(outputs, upstream.to(outputs.device), inputs=[leaf, *parameters])
        if leaf.grad is None:
            raise RequestError(f"{site.name} passes no gradient on: the architecture is unknown")
        self._upstream[batch] = leaf.grad.to(_HOST)

    def _add_pending(self, parameter: nn.Parameter, gradients: dict[int, Tensor]) -> None:
        later = self._pending.pop(id(parameter), None)
        if later is not None:
            here = gradients.get(id(parameter))
            moved = later.to(parameter.device)
            gradients[id(parameter)] = moved if here is None else here.add_(moved)

    def _reduced(self, linear: LinearSite, gradients: dict[int, Tensor]) -> Salience:
        parameter = linear.module.get_parameter("weight")
        gradient = gradients.pop(id(parameter), None)
        if gradient is None:
            raise RequestError(unreached(linear))
        # [out, in]; the mean's divisor comes last, see _gradients_of_the_tail
        products = gradient.mul_(parameter.detach()).to(torch.float64).div_(self._n_predictions)
        rows = in_rows(linear.module, products)
        vectors = [rows.sum(dim) for dim in (1, 0)]
        products.abs_()
        elements = [rows.sum(dim) for dim in (1, 0)]
        sums = [column.to(_HOST) for column in (*elements, *vectors)]
        if not all(is_finite(column) for column in sums):
            raise RequestError(
                f"the gradient of {linear.name} holds NaN or Inf: the model or its data type overflows; "
                "try --dtype float32 or bfloat16"
            )
        return Salience(*sums)


@contextmanager
def _summed_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[dict[int, Tensor]]:
    """Inside, each backward pass adds the gradients of `parameters` up in float32, by the parameter's id.

    A parameter's `grad` is let go of as soon as it is whole, so that there is one at a time.
    """
    sums: dict[int, Tensor] = {}

    def take(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            return
        if id(parameter) in sums:
            sums[id(parameter)].add_(gradient)
        else:
            sums[id(parameter)] = gradient.float()

    with ExitStack() as stack:
        for parameter in parameters:
            parameter.requires_grad_(True)
            stack.callback(parameter.requires_grad_, False)
            handle = parameter.register_post_accumulate_grad_hook(take)  # type: ignore[no-untyped-call]
            stack.callback(handle.remove)
        yield sums
