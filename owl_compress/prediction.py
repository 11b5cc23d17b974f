"""What a compression will need and leave, told before it is done."""

from dataclasses import asdict, dataclass
from math import floor

from torch import nn

from owl_compress.backend import AnyBackend
from owl_compress.calibration import TokenWindows
from owl_compress.families import find_structure
from owl_compress.plan import Plan, Unit
from owl_compress.quantized import Quantizer
from owl_compress.statistics import Gram

_FLOAT32, _FLOAT64 = 4, 8
_WORKING_COPIES = 3
"""Float32 matrices of a linear's size that a backend holds at a time: weight, scores, mask or product."""


@dataclass(frozen=True)
class Prediction:
    """Sizes in bytes. `working_bytes` is what the walk needs besides the model itself, on the device."""

    checkpoint_bytes: int
    n_weights_kept: int
    working_bytes: int
    activation_bytes: int

    def as_dict(self) -> dict[str, int]:
        """For JSON."""
        return asdict(self)


def predict(
    model: nn.Module,
    plan: Plan,
    backend: AnyBackend,
    calibration: TokenWindows | None,
    batch_size: int = 1,
    *,
    is_packed: bool = False,
) -> Prediction:
    """Predict the size of the checkpoint and the memory of the walk, from shapes alone."""
    structure = find_structure(model)
    plan.check_fits(structure.linear_sizes)
    parameters = list(model.parameters())
    largest = max(structure.blocks, key=lambda block: block.n_weights)
    element = parameters[0].element_size()
    if backend.statistic is None:
        statistics = 0
    elif backend.statistic is Gram:
        statistics = (
            sum({linear.shape[1]: linear.shape[1] ** 2 for linear in largest.linears}.values()) * _FLOAT32
        )
    else:
        statistics = sum(linear.shape[1] for linear in largest.linears) * _FLOAT64
    hidden = int(getattr(getattr(model, "config", None), "hidden_size", 0))
    tokens = calibration.ids.numel() if calibration is not None and backend.statistic else 0
    batch_tokens = min(tokens, batch_size * calibration.record.seq_len) if calibration is not None else 0
    widest = sum(sum(linear.shape) for linear in largest.linears)
    checkpoint_bytes = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    if is_packed and isinstance(backend, Quantizer):
        sites = {linear.name: linear for linear in structure.linears}
        for budget in plan.budgets:
            site = sites[budget.name]
            n_bits = backend.code_format.n_bits(site.shape, round(budget.value), 8 * element)
            checkpoint_bytes += n_bits // 8 - site.n_weights * element
    return Prediction(
        checkpoint_bytes=checkpoint_bytes,
        n_weights_kept=sum(floor(budget.value * budget.n_weights) for budget in plan.budgets)
        if plan.unit is Unit.DENSITY
        else sum(budget.n_weights for budget in plan.budgets),
        working_bytes=largest.n_weights * element
        + max(linear.n_weights for linear in largest.linears) * _FLOAT32 * _WORKING_COPIES
        + statistics
        + batch_tokens * widest * element,
        activation_bytes=tokens * hidden * element,
    )
