"""One checkpoint to be read, wherever it lies, and the one door through which transformers reads it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from owl_compress.checkpoints.door import check_kernels, pretrained
from owl_compress.checkpoints.quantized_elsewhere import check_names, described_quantization
from owl_compress.errors import RequestError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint on the hub, in a folder, or in a GGUF file.

    Attributes:
        named: what the user named, for messages.
        where: hub id or folder.
        gguf: name of the GGUF file in it that holds the weights, if one does.
        is_local: a folder.
        dtype: that the weights are to have.
        allow_pickle: whether pickled weights may be loaded.
        options: those of every `from_pretrained` at this place: revision, trust_remote_code.
    """

    named: str
    where: str
    gguf: str | None = None
    is_local: bool = True
    dtype: torch.dtype | Literal["auto"] = "auto"
    allow_pickle: bool = False
    options: Mapping[str, Any] = field(default_factory=lambda: {"trust_remote_code": False})

    @classmethod
    def of_folder(cls, folder: Path, *, trust_remote_code: bool = False) -> "CheckpointSource":
        """The checkpoint in a folder; its code is run only where that is said to be trusted."""
        return cls(str(folder), str(folder), options={"trust_remote_code": trust_remote_code})

    @property
    def trusts_code(self) -> bool:
        """Whether code beside the checkpoint may be run."""
        return bool(self.options.get("trust_remote_code", False))

    @cached_property
    def described(self) -> Mapping[str, Any]:
        """The content of config.json, as it is in the file; nothing of a GGUF, which has none."""
        if self.gguf:
            return {}
        content, _ = PretrainedConfig.get_config_dict(self.where, revision=self.options.get("revision"))
        return dict(content)

    @cached_property
    def config(self) -> Any:
        """The configuration as an object of transformers.

        Raises:
            RequestError: it has code fetched from elsewhere, and no code is to be run.
        """
        if not self.trusts_code:
            check_kernels(self.described, self.named)
        return pretrained(AutoConfig, self.where, **self.all_options)

    @property
    def all_options(self) -> dict[str, Any]:
        """The options of `from_pretrained`, with the name of a GGUF file."""
        gguf = {"gguf_file": self.gguf} if self.gguf else {}
        return {**self.options, "trust_remote_code": self.trusts_code, **gguf}

    def from_pretrained(
        self,
        kind: Any = AutoModelForCausalLM,
        *,
        dtype: torch.dtype | Literal["auto"] | None = None,
        runs_code: bool = True,
    ) -> Any:
        """The model with all its weights, as `kind` builds it.

        Without `runs_code` the class is one of ours, and no code beside the checkpoint is run at all.

        Raises:
            RequestError: a tensor that is missing or of another shape.
        """
        options = self.all_options
        if not runs_code:
            options["trust_remote_code"] = False
        model, info = pretrained(
            kind,
            self.where,
            config=self.config,
            dtype=dtype or self.dtype,
            use_safetensors=None if self.allow_pickle else True,
            ignore_mismatched_sizes=True,  # reported with the tensor's name by the check below
            output_loading_info=True,
            **options,
        )
        if described_quantization(self.described) is None:
            check_names(self.named, info["unexpected_keys"])
        _check_is_complete(info, self.named)
        return model


def _check_is_complete(info: dict[str, Any], source: str) -> None:
    """Refuse a model whose file lacks a tensor: transformers would fill it with random numbers."""
    missing, mismatched = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    if mismatched:
        name, found, expected = mismatched[0]
        raise RequestError(
            f"model {source!r}: tensor {name!r} has shape {tuple(found)} in the file, {tuple(expected)} by "
            f"config.json ({len(mismatched)} such): the checkpoint is broken or its config is another model's"
        )
    if missing:
        raise RequestError(
            f"model {source!r}: tensor {missing[0]!r} is missing from the file ({len(missing)} such): "
            f"the checkpoint is incomplete or its config is another model's"
        )
    if info["unexpected_keys"]:
        logger.warning(
            "%s: %d tensors of the file are not used by the model, the first is %s",
            source, len(info["unexpected_keys"]), min(info["unexpected_keys"]),
        )  # fmt: skip


def forget_quantization_(model: Any) -> None:
    """Drop what marks the model as quantised: its weights are ordinary dequantised tensors."""
    for attribute in ("hf_quantizer", "quantization_method"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    # transformers copies a GGUF's title into the config, where it would pass for a path.
    for attribute in ("quantization_config", "_model_name_or_path"):
        if hasattr(model.config, attribute):
            delattr(model.config, attribute)
    model.is_quantized = False
