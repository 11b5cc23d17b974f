"""What a compression will need and leave, told before it is done."""

from torch import nn

from owl_compress.compression.contract import AnyBackend, GradientReader, Quantizer
from owl_compress.compression.gradient_memory import gradient_sizes, windows_of_gradients
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.measurements import Prediction
from owl_compress.documents.plan import LinearBudget, Plan
from owl_compress.documents.units import Unit, kept_weights
from owl_compress.models.limits import hidden_size
from owl_compress.models.structure import BlockSite, ModelStructure
from owl_compress.walk.input_statistics import Gram, Statistic

_FLOAT32, _FLOAT64 = 4, 8
_WORKING_COPIES = 3
"""Float32 matrices of a linear's size that a backend holds at a time: weight, scores, mask or product."""


def predict(
    model: nn.Module,
    structure: ModelStructure,
    plan: Plan,
    backend: AnyBackend,
    calibration: TokenWindows | None,
    batch_size: int = 1,
    *,
    is_packed: bool = False,
) -> Prediction:
    """Predict the size of the checkpoint and the memory of the walk, from shapes alone.

    Widths are rounded to whole heads and channels later, never above what is said here.
    """
    plan.check_fits(structure.linear_sizes)
    element = next(model.parameters()).element_size()
    n_weights_kept = sum(_n_kept(budget, plan.unit) for budget in plan.budgets)
    checkpoint_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if plan.unit is Unit.WIDTH:
        checkpoint_bytes -= element * (sum(budget.n_weights for budget in plan.budgets) - n_weights_kept)
    if is_packed and isinstance(backend, Quantizer):
        checkpoint_bytes += _packing_bytes(structure, plan, backend, element)
    working_bytes, activation_bytes = walk_bytes(model, structure, backend.statistic, calibration, batch_size)
    if calibration is not None and isinstance(backend, GradientReader) and backend.reads_gradients:
        # Gradients are taken first, and what they needed is given back before the walk begins.
        windows = windows_of_gradients(backend, calibration)
        sizes = gradient_sizes(model, structure, windows, batch_size)
        working_bytes = max(working_bytes, sizes.weight_bytes + sizes.block_bytes, sizes.tail_bytes)
        activation_bytes = max(activation_bytes, sizes.kept_bytes)
    return Prediction(
        checkpoint_bytes=checkpoint_bytes,
        n_weights_kept=n_weights_kept,
        working_bytes=working_bytes,
        activation_bytes=activation_bytes,
    )


def _packing_bytes(structure: ModelStructure, plan: Plan, backend: Quantizer, element: int) -> int:
    """What packed codes and their scales take more than the weights they stand for; less than nothing."""
    sites = {linear.name: linear for linear in structure.linears}
    change = 0
    for budget in plan.budgets:
        site = sites[budget.name]
        n_bits = backend.code_format.n_bits(site.shape, round(budget.value), 8 * element)
        change += n_bits // 8 - site.n_weights * element
    return change


def walk_bytes(
    model: nn.Module,
    structure: ModelStructure,
    statistic: type[Statistic] | None,
    calibration: TokenWindows | None,
    batch_size: int,
) -> tuple[int, int]:
    """The largest block with its statistics and one batch; and what goes from block to block."""
    largest = max(structure.blocks, key=lambda block: block.n_weights)
    element = next(model.parameters()).element_size()
    tokens, batch_tokens = 0, 0
    if calibration is not None and statistic:
        tokens = calibration.ids.numel()
        batch_tokens = min(tokens, batch_size * calibration.record.seq_len)
    matrices = matrix_bytes(largest)
    batch = batch_tokens * sum(sum(linear.shape) for linear in largest.linears) * element
    working_bytes = largest.n_weights * element + matrices + _statistics_bytes(statistic, largest) + batch
    return working_bytes, tokens * hidden_size(model) * element


def matrix_bytes(block: BlockSite) -> int:
    """Float32 matrices that a backend works with at a time, of the largest linear."""
    return max(linear.n_weights for linear in block.linears) * _FLOAT32 * _WORKING_COPIES


def _statistics_bytes(statistic: type[Statistic] | None, block: BlockSite) -> int:
    """What is gathered of the inputs of one block at a time."""
    if statistic is None:
        return 0
    if statistic is Gram:
        return _FLOAT32 * sum({n_inputs: n_inputs**2 for n_inputs in _inputs(block)}.values())
    return _FLOAT64 * sum(_inputs(block))


def _inputs(block: BlockSite) -> list[int]:
    return [linear.shape[1] for linear in block.linears]


def _n_kept(budget: LinearBudget, unit: Unit) -> int:
    """Weights of one linear that are left; bits leave all of them."""
    return budget.n_weights if unit is Unit.BITS else kept_weights(budget.value, budget.n_weights)
