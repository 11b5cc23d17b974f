"""One checkpoint to be read, wherever it lies, and the one door through which transformers reads it."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from owl_compress.checkpoints.door import check_kernels, pretrained
from owl_compress.checkpoints.headers import (
    check_announced,
    check_dtypes,
    check_is_complete,
    rehearsal,
)
from owl_compress.checkpoints.leftovers import Leftovers, find_leftovers
from owl_compress.checkpoints.quantized_elsewhere import check_names, described_quantization
from owl_compress.checkpoints.tensors import TensorHeader, has_safetensors, tensor_headers


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
        notes: what is to be told of it, gathered while it is loaded.
        leftovers: what was not loaded, once a model was; at most one.
    """

    named: str
    where: str
    gguf: str | None = None
    is_local: bool = True
    dtype: torch.dtype | Literal["auto"] = "auto"
    allow_pickle: bool = False
    options: Mapping[str, Any] = field(default_factory=lambda: {"trust_remote_code": False})
    notes: list[str] = field(default_factory=list, repr=False, compare=False)
    leftovers: list[Leftovers] = field(default_factory=list, compare=False, repr=False)

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
        """The configuration as an object of transformers, not of more blocks than the files could have.

        Raises:
            RequestError: see `check_announced`; corrupt files; or code fetched from elsewhere, and none
                is to be run.
        """
        described = self.described  # of a hub model: now it is in the cache, and its weights may be
        if not self.trusts_code:
            check_kernels(described, self.named)
        if self.headers:
            check_announced(described, self.headers, self.named)
        return pretrained(AutoConfig, self.where, **self.all_options)

    @property
    def headers(self) -> Mapping[str, TensorHeader]:
        """What safetensors files say of their tensors; nothing before a hub model is in the cache."""
        folder = self.snapshot
        return {} if self.gguf or folder is None or not has_safetensors(folder) else tensor_headers(folder)

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
        load = self._loading(kind, dtype=dtype, runs_code=runs_code)
        self._check_headers(partial(load, device_map="meta"))
        model, info = load()
        self._check_loaded(info)
        self._note_unused(model, info)
        return model

    def on_meta(self, kind: Any = AutoModelForCausalLM, *, runs_code: bool = True) -> Any:
        """The model as transformers loads it, without a single weight: all tensors on the meta device.

        `kind` and `runs_code` as for `from_pretrained`.

        Raises:
            RequestError: a tensor that is missing, of another shape or of another type.
        """
        model, info = self._loading(kind, runs_code=runs_code)(device_map="meta")
        self._check_loaded(info)
        if described_quantization(self.described) is None:
            check_dtypes(model, self.headers, set(info["unexpected_keys"]), self.named)
        self._note_unused(model, info)
        return model

    def _loading(
        self,
        kind: Any = AutoModelForCausalLM,
        *,
        dtype: torch.dtype | Literal["auto"] | None = None,
        runs_code: bool = True,
    ) -> Callable[..., tuple[Any, dict[str, Any]]]:
        """Who loads the model with the options of this place, and says what of the files was not used."""
        options = self.all_options
        if not runs_code:
            options["trust_remote_code"] = False

        def load(**further: Any) -> tuple[Any, dict[str, Any]]:
            loaded: tuple[Any, dict[str, Any]] = pretrained(
                kind,
                self.where,
                config=deepcopy(self.config),
                dtype=dtype or self.dtype,
                use_safetensors=None if self.allow_pickle else True,
                ignore_mismatched_sizes=True,  # reported with the tensor's name by the checks
                output_loading_info=True,
                **options,
                **further,
            )
            return loaded

        return load

    def _note_unused(self, model: Any, info: Mapping[str, Any]) -> None:
        """Take note of what lies in the files and not in the model."""
        unused = set(info["unexpected_keys"])
        if self.snapshot is not None and not self.gguf:
            self.leftovers[:] = [find_leftovers(model, self.snapshot, self.headers, unused)]
            unused |= set(self.leftovers[0].apart)
        if unused:
            self.notes.append(
                f"{len(unused)} tensors of the input are not used by the model, the first {min(unused)}"
            )

    def _check_headers(self, rehearse: Callable[[], tuple[Any, dict[str, Any]]]) -> None:
        """Hold the configuration against the headers of the files, where they are safetensors.

        Raises:
            RequestError: what the files do not have, or what they hold is not what it looks like.
        """
        if self.gguf or (self.is_local and not has_safetensors(self.where)):
            return
        rehearsed = rehearsal(rehearse, self.named)
        if rehearsed is None:
            return
        model, info = rehearsed
        self._check_loaded(info)
        if described_quantization(self.described) is None:
            check_dtypes(model, self.headers, set(info["unexpected_keys"]), self.named)

    def _check_loaded(self, info: Mapping[str, Any]) -> None:
        """Refuse what transformers has found to be missing, or of another kind or shape."""
        if described_quantization(self.described) is None:
            check_names(self.named, info["unexpected_keys"])
        check_is_complete(info, self.named)

    @property
    def snapshot(self) -> Path | None:
        """The folder of the files: a local one, or that of the hub's cache once a hub model is in it."""
        if self.is_local:
            return Path(self.where)
        cached = try_to_load_from_cache(self.where, "config.json", revision=self.options.get("revision"))
        return Path(cached).parent if isinstance(cached, str) else None


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
