"""Training the weights that were kept: the strongest recovery, and the one that takes most memory."""

from dataclasses import dataclass
from typing import Any, ClassVar

from owl_compress.models.structure import ModelStructure
from owl_compress.recovery.contract import Trainee
from owl_compress.recovery.parameters import (
    biases_and_norms,
    freeze_,
    kept_in,
    trainable_linears,
    trained_in_float32_,
)


@dataclass(frozen=True)
class Masked:
    """All linears in the blocks, with biases and norms; weights that are zero stay zero, bit for bit.

    Gradients are set to zero where the mask is, before each step of the optimizer. Embeddings and head stay
    as they are. AdamW keeps two more values for each trained one.
    """

    name: ClassVar[str] = "masked"
    learning_rate: ClassVar[float] = 1e-4
    changes_weights: ClassVar[bool] = True

    def check_ready(self) -> None:
        """It needs nothing."""

    def prepare_(self, model: Any, structure: ModelStructure) -> Trainee:
        """Have the weights of linears, biases and norms want gradients, and nothing else."""
        freeze_(model)
        weights = {
            name: site.module.get_parameter("weight") for name, site in trainable_linears(structure).items()
        }
        parameters = {
            name: trained_in_float32_(parameter)
            for name, parameter in (weights | biases_and_norms(model)).items()
        }
        masks = {name: kept_in(weight.data) for name, weight in weights.items()}
        return Trainee(
            model,
            parameters,
            kept={name: mask for name, mask in masks.items() if mask is not None},
            learned=lambda: {name: one.detach() for name, one in parameters.items()},
        )
