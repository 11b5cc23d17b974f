"""The parameters of a model that methods train, by name, each once."""

from typing import Any

import torch
from torch import Tensor, nn

from owl_compress.models.structure import LinearSite, ModelStructure


def freeze_(model: nn.Module) -> None:
    """Have no parameter want gradients."""
    for parameter in model.parameters():
        parameter.requires_grad = False


def trained_in_float32_(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter, wanting gradients; in float32, in which small steps are not lost."""
    parameter.data = parameter.data.to(torch.float32)
    parameter.requires_grad = True
    return parameter


def biases_and_norms(model: Any) -> dict[str, nn.Parameter]:
    """All parameters of one dimension: biases, and scales and shifts of norms."""
    return {name: one for name, one in model.named_parameters() if one.ndim == 1 and one.is_floating_point()}


def trainable_linears(structure: ModelStructure) -> dict[str, LinearSite]:
    """The linears of all blocks that have weights, by the name of their weight in the model.

    Two that share one weight are found once, see `find_structure`.
    """
    return {f"{linear.name}.weight": linear for linear in structure.linears if linear.n_weights}


def kept_in(weight: Tensor) -> Tensor | None:
    """True where a weight is not zero, of the same shape; None for one without zeros: all may change."""
    kept = weight != 0
    return None if bool(kept.all()) else kept
