"""What a recovery method is, stated so that the training can run any of them without knowing one.

The methods lie in files of their own in this room, one each, and are found by name in `methods`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from owl_compress.models.structure import ModelStructure


@dataclass(frozen=True)
class Trainee:
    """A model that is ready to be trained.

    Attributes:
        model: called with `input_ids`, answers with `logits`.
        parameters: what is trained, float32, by names that are the same in every run.
        kept: by name of a parameter, of the same shape, True where it may differ from zero; those that are
            not named may everywhere.
        learned: the weights of the plain model that differ now, by their names there, as they are to be
            saved; none of an adapter.
        write_adapter: writes what was learned into a folder of its own; None where weights hold it.
    """

    model: Any
    parameters: Mapping[str, nn.Parameter]
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    learned: Callable[[], dict[str, Tensor]] = dict
    write_adapter: Callable[[Path], None] | None = None

    @property
    def n_trained(self) -> int:
        """Number of values that are trained."""
        return sum(
            int(self.kept[name].sum()) if name in self.kept else parameter.numel()
            for name, parameter in self.parameters.items()
        )


@runtime_checkable
class RecoveryMethod(Protocol):
    """A way to train a compressed model: a frozen dataclass whose fields are its options.

    `name` is what it is registered as, `learning_rate` the one that it is used with where nobody says.
    """

    name: ClassVar[str]
    learning_rate: ClassVar[float]

    @property
    def changes_weights(self) -> bool:
        """Whether the weights of linears become others: then quantized ones would leave their grid."""
        ...

    def check_ready(self) -> None:
        """Refuse, before any work is done, to go on without a package that it needs."""
        ...

    def prepare_(self, model: Any, structure: ModelStructure) -> Trainee:
        """Make `model` ready, in place; its other parameters no longer want gradients."""
        ...
