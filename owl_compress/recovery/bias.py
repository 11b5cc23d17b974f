"""Training biases and norms alone: the cheapest recovery, of less than a thousandth of the parameters."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from owl_compress.models.structure import ModelStructure
from owl_compress.recovery.contract import Trainee
from owl_compress.recovery.parameters import biases_and_norms, freeze_, trained_in_float32_


@dataclass(frozen=True)
class Bias:
    """All biases, and the scales and shifts of norms, as in PERP (arXiv 2312.15230).

    A family without biases, such as Llama, has its norms trained: no bias is added, which stock classes would
    not load.
    """

    name: ClassVar[str] = "bias"
    learning_rate: ClassVar[float] = 1e-3
    changes_weights: ClassVar[bool] = False

    def check_ready(self) -> None:
        """It needs nothing."""

    def prepare_(self, model: Any, structure: ModelStructure) -> Trainee:  # noqa: ARG002 - the protocol's
        """Have biases and norms want gradients, and nothing else."""
        freeze_(model)
        parameters: dict[str, nn.Parameter] = {
            name: trained_in_float32_(parameter) for name, parameter in biases_and_norms(model).items()
        }
        return Trainee(
            model, parameters, learned=lambda: {name: one.detach() for name, one in parameters.items()}
        )
