"""LoRA: low-rank changes beside the linears, kept as an adapter or merged under the mask."""

import importlib.util
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from owl_compress.errors import RequestError
from owl_compress.models.adapters import peft_kept_quiet
from owl_compress.models.structure import LinearSite, ModelStructure
from owl_compress.options import option
from owl_compress.recovery.contract import Trainee
from owl_compress.recovery.low_rank import change_by_low_rank_, changed_weight
from owl_compress.recovery.parameters import freeze_, trainable_linears

_CONFIG_NAME = "adapter_config.json"
_NOT_OURS = "README.md"
"""A card of peft's own, with nothing in it; the folder above has one that says all."""


@dataclass(frozen=True)
class Lora:
    """Low-rank adaptation (arXiv 2106.09685) of every linear in the blocks.

    Left as it is, peft trains an adapter beside the compressed weights, which stay as they are (Table 6 of
    the OWL paper). With `merge` the change is trained under the mask and becomes part of the weights: see
    `owl_compress.recovery.low_rank`. `alpha` / `rank` scales the change.
    """

    rank: int = option(16, "Rank of the change.", at_least=1, at_most=65536)
    alpha: float | None = option(None, "Scale of the change times the rank; default twice it.", above=0)
    merge: bool = option(False, "Train the change under the mask, and merge it into the weights.")

    name: ClassVar[str] = "lora"
    learning_rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        """Refuse a scale without end, which no learning rate makes up for."""
        if self.alpha is not None and not math.isfinite(self.alpha):
            raise ValueError(f"alpha {self.alpha} has no end: give one such as {2 * self.rank}")

    @property
    def changes_weights(self) -> bool:
        """Only a change that is merged."""
        return self.merge

    @property
    def scale(self) -> float:
        """The factor of the product of the two matrices."""
        return 2.0 if self.alpha is None else self.alpha / self.rank

    def check_ready(self) -> None:
        """Refuse to train an adapter without peft.

        Raises:
            RequestError: it is not installed.
        """
        if not self.merge and importlib.util.find_spec("peft") is None:
            raise RequestError(
                "method 'lora' needs the package peft: pip install 'owl-compress[recover]', or --merge"
            )

    def prepare_(self, model: Any, structure: ModelStructure) -> Trainee:
        """Put low-rank changes on the linears; they alone want gradients.

        Raises:
            RequestError: a rank above that of every weight.
        """
        sites = trainable_linears(structure)
        fullest = max(min(site.shape) for site in sites.values())
        if self.rank > fullest:
            raise RequestError(
                f"--rank {self.rank} is above {fullest}, the most that any weight here has: give less"
            )
        return self._merged_(model, sites) if self.merge else self._beside_(model, sites)

    def _merged_(self, model: Any, sites: Mapping[str, LinearSite]) -> Trainee:
        freeze_(model)
        generator = torch.Generator().manual_seed(torch.initial_seed())
        changes = {
            name: change_by_low_rank_(site.module, self.rank, self.scale, generator)
            for name, site in sites.items()
        }
        parameters: dict[str, nn.Parameter] = {}
        for name, change in changes.items():
            parameters |= {f"{name}.a": change.a, f"{name}.b": change.b}

        def learned() -> dict[str, Tensor]:
            with torch.no_grad():
                return {name: changed_weight(site.module) for name, site in sites.items()}

        return Trainee(model, parameters, learned=learned)

    def _beside_(self, model: Any, sites: Mapping[str, LinearSite]) -> Trainee:
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - optional

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.scale * self.rank,
            target_modules=[site.name for site in sites.values()],
            fan_in_fan_out=any(isinstance(site.module, Conv1D) for site in sites.values()),
            task_type="CAUSAL_LM",
        )
        with peft_kept_quiet():
            adapted: Any = get_peft_model(model, config)
        parameters = {name: one for name, one in adapted.named_parameters() if one.requires_grad}

        def write_adapter(folder: Path) -> None:
            with peft_kept_quiet():
                adapted.save_pretrained(folder)
            _unnamed(folder)

        return Trainee(adapted, parameters, write_adapter=write_adapter)


def _unnamed(folder: Path) -> None:
    """Drop what peft writes about where the base model was: a path of this machine; it lies one folder up."""
    (folder / _NOT_OURS).unlink(missing_ok=True)
    path = folder / _CONFIG_NAME
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = None
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
