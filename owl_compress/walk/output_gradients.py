"""How the log-likelihood of what a model might say next depends on the output of each of its blocks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from owl_compress.data.windows import TokenWindows
from owl_compress.errors import RequestError
from owl_compress.memory import memory_errors
from owl_compress.models.state import is_finite, parameter_device
from owl_compress.models.structure import ModelStructure
from owl_compress.progress import SILENT, Progress
from owl_compress.walk.blocks import BlockWalk
from owl_compress.walk.capture import Tail
from owl_compress.walk.gradients import run_forward, without_gradients

_HOST = torch.device("cpu")


def output_gradients(
    model: nn.Module,
    structure: ModelStructure,
    windows: TokenWindows,
    *,
    device: torch.device,
    batch_size: int = 1,
    seed: int = 0,
    progress: Progress = SILENT,
) -> list[list[Tensor]]:
    """Gradient of Σ_t log p(y_t) at the output of every block, by block and batch, [batch, seq_len, hidden].

    y_t is drawn from the model's own prediction at position t, for all positions of a window: the expectation
    of the squared gradient is then the Fisher information, with the labels of the text it would not be. The
    host holds the gradients, blocks * tokens * hidden values.

    Raises:
        RequestError: NaN or Inf in activations or gradients, naming the block; out of memory.
    """
    batches = windows.batches(batch_size)
    walk = BlockWalk(model, structure, batches, device=device, keep_on=_HOST)
    blocks = structure.blocks
    with memory_errors("taking gradients"), without_gradients(model), walk.prepared():
        inputs = run_forward(walk, progress)
        found = [_behind_the_last(model, structure, batches, walk.hidden, seed)]
        for index in progress.track(reversed(range(1, len(blocks))), len(blocks) - 1, "taking gradients"):
            found.append(_through_block(walk, index, inputs[index], found[-1]))
            inputs[index].clear()
    return found[::-1]


def _behind_the_last(
    model: nn.Module,
    structure: ModelStructure,
    batches: Sequence[Tensor],
    hidden: Sequence[Tensor],
    seed: int,
) -> list[Tensor]:
    place = parameter_device(model)
    tail = Tail(model, structure.blocks, batches[0])
    generator = torch.Generator().manual_seed(seed)
    gradients = []
    for token_ids, outputs in zip(batches, hidden, strict=True):
        leaf = outputs.to(place).detach().requires_grad_()
        with torch.enable_grad():
            log_probabilities = torch.log_softmax(tail.logits(token_ids, leaf).float(), dim=-1)
            flat = log_probabilities.flatten(0, 1)  # [batch, seq_len, vocabulary] -> [tokens, vocabulary]
            drawn = torch.multinomial(flat.detach().exp().cpu(), 1, generator=generator).to(place)
            (gradient,) = torch.autograd.grad(flat.gather(1, drawn).sum(), leaf)
        gradients.append(gradient.to(_HOST))
    return gradients


def _through_block(
    walk: BlockWalk, index: int, inputs: Sequence[Tensor], behind: Sequence[Tensor]
) -> list[Tensor]:
    """The gradients in front of block `index`, which are those behind the one before it."""
    site = walk.structure.blocks[index]
    gradients = []
    with walk.visit(index):
        for batch, upstream in enumerate(behind):
            leaf = inputs[batch].to(walk.device).detach().requires_grad_()
            with torch.enable_grad():
                outputs = walk.run_block(index, batch, leaf)
                (gradient,) = torch.autograd.grad(outputs, leaf, upstream.to(outputs.device))
            if not is_finite(gradient):
                raise RequestError(
                    f"the gradient in front of {site.name} holds NaN or Inf: the model or its data type "
                    "overflows; try --dtype float32 or bfloat16"
                )
            gradients.append(gradient.to(_HOST))
    return gradients
