"""A model whose blocks stay on disk: their weights are read when they are worked on, and dropped again.

transformers loads the checkpoint onto the meta device, where names, shapes and tied weights come out as in
earnest; the embeddings, norms and head are read, and every block is told where in the files its weights are.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from owl_compress.checkpoints.door import from_config
from owl_compress.checkpoints.reading import CheckpointSource
from owl_compress.checkpoints.stored_tensors import HOST, Stored, StoredTensor, copied
from owl_compress.checkpoints.tensors import has_safetensors, tensor_files
from owl_compress.errors import RequestError
from owl_compress.models.residence import Bring, residence_of, settle_
from owl_compress.models.state import check_weight
from owl_compress.models.structure import find_structure

REMEDY = "use --offload host or none"
"""What helps where a checkpoint cannot be read block by block."""


@dataclass
class StreamedBlock:
    """A block whose weights are read from files; see `models.residence.Residence`.

    Attributes:
        name: of the block in the model.
        module: the block; its parameters are on the meta device while nobody works on it.
        stored: where each parameter and each saved buffer lies, by its name in the block.
        own_file: that holds all of it by its names in the model; None while it lies in the input.
    """

    name: str
    module: nn.Module
    stored: Mapping[str, Stored]
    _empty: dict[str, Tensor] = field(default_factory=dict, init=False)
    _depth: int = field(default=0, init=False)
    own_file: Path | None = field(default=None, init=False)
    _is_checked: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._empty = dict(_tensors(self.module))

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the model of all that is stored; what the block uses twice is there once."""
        first: dict[int, str] = {}
        for key in self.stored:
            first.setdefault(id(self._empty[key]), key)
        return tuple(f"{self.name}.{key}" for key in first.values())

    @property
    def n_bytes(self) -> int:
        """Bytes of all that is stored."""
        tensors = [self._empty[name.removeprefix(f"{self.name}.")] for name in self.names]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def read(self) -> dict[str, Tensor]:
        """All that is stored, on the host, by its names in the model.

        Raises:
            RequestError: see `StoredTensor.read`.
        """
        keys = {name: name.removeprefix(f"{self.name}.") for name in self.names}
        return {name: self.stored[key].read(self._empty[key], name, copied) for name, key in keys.items()}

    def fetch(self, bring: Bring) -> dict[str, Tensor]:
        """Read all that is stored; see the protocol.

        Raises:
            RequestError: see `StoredTensor.read`; or it holds NaN or Inf.
        """

        def checked(called: str, tensor: Tensor) -> Tensor:
            if not self._is_checked:
                check_weight(called, tensor)
            return bring(tensor)

        keys = {name: name.removeprefix(f"{self.name}.") for name in self.names}
        return {
            key: self.stored[key].read(self._empty[key], name, partial(checked, name))
            for name, key in keys.items()
        }

    @contextmanager
    def present(self, where: torch.device, fetched: dict[str, Tensor] | None = None) -> Iterator[None]:
        """Hold the weights inside; see the protocol."""
        self._depth += 1
        try:
            if self._depth == 1:
                self._arrive_(where, fetched)
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                for name, tensor in self._empty.items():
                    _put_(self.module, name, tensor)

    def moved_to(self, file: Path) -> None:
        """Read the weights from `file` next time; taken as they are, in the shapes that they have now."""
        first = {id(self._empty[name.removeprefix(f"{self.name}.")]): name for name in self.names}
        self.stored = {key: StoredTensor.at(file, first[id(self._empty[key])]) for key in self.stored}
        self.own_file, self._is_checked = file, True
        if self._depth:
            self._take_shapes_()

    def _take_shapes_(self) -> None:
        """Let what stands in for the weights be of their shapes: heads and channels may be gone."""
        present, by_old = dict(_tensors(self.module)), dict[int, Tensor]()
        for name, old in self._empty.items():
            now = present[name]
            if id(old) not in by_old:
                by_old[id(old)] = old if now.shape == old.shape else _emptied(now)
            self._empty[name] = by_old[id(old)]

    def _arrive_(self, where: torch.device, fetched: dict[str, Tensor] | None) -> None:
        found = self.fetch(partial(copied, where=where)) if fetched is None else fetched
        arrived: dict[int, Tensor] = {}  # what the block uses twice is one tensor
        for name, empty in self._empty.items():
            if id(empty) not in arrived:
                # A buffer that is computed is there already.
                tensor = found.pop(name) if name in self.stored else empty.to(where)
                is_parameter = isinstance(empty, nn.Parameter)
                arrived[id(empty)] = nn.Parameter(tensor, empty.requires_grad) if is_parameter else tensor
            _put_(self.module, name, arrived[id(empty)])
        self._is_checked = True


Located = Callable[[Any, Mapping[str, Stored]], Mapping[str, Stored]]
"""Changes a model without weights, and says where its tensors lie by the names that they have then."""


def streamed_model(
    source: CheckpointSource, kind: Any = None, located: Located = lambda _, stored: stored
) -> Any:
    """The model of `source`, whose blocks stay in its files.

    It is of the class that its configuration names, or of a `kind` of ours, for which no code is run. What
    transformers loads becomes what is to be in memory by `located`.

    Raises:
        RequestError: a checkpoint that has to be converted on the way into memory, or whose blocks share
            weights.
    """
    if source.snapshot is not None and not has_safetensors(source.snapshot):
        raise RequestError(f"model {source.named!r} has no safetensors to read block by block: {REMEDY}")
    model = source.on_meta() if kind is None else source.on_meta(kind, runs_code=False)
    stored = located(model, _located(model, source))
    _compute_(model, source, kind)
    blocks = {site.name: site.module for site in find_structure(model).blocks}
    _check_apart(blocks, source.named)
    within = {id(tensor) for block in blocks.values() for _, tensor in _tensors(block)}
    for name, tensor in list(_tensors(model)):
        if id(tensor) not in within and tensor.is_meta:
            read = stored[name].read(tensor, name, copied)
            _replace_(model, tensor, nn.Parameter(read) if isinstance(tensor, nn.Parameter) else read)
    for name, block in blocks.items():
        keys = [key for key, _ in _tensors(block) if f"{name}.{key}" in stored]
        settle_(block, StreamedBlock(name, block, {key: stored[f"{name}.{key}"] for key in keys}))
        block.__dict__["forward"] = _WeightsComeAlong(block)
    return model


@dataclass
class _WeightsComeAlong:
    """The forward of a block that has its weights brought while it runs, be it within the model's own.

    A copy of the block, made while it holds its weights, keeps them and has none brought.
    """

    block: nn.Module

    def __call__(self, *positional: Any, **named: Any) -> Any:
        """What the block's class does."""
        residence = residence_of(self.block)
        tensors = (one for one in (*positional, *named.values()) if isinstance(one, Tensor))
        where = next((one.device for one in tensors), HOST)
        with residence.present(where) if residence else nullcontext():
            return type(self.block).forward(self.block, *positional, **named)


def _located(model: Any, source: CheckpointSource) -> dict[str, Stored]:
    """Where the tensors of `model` lie, by all the names they have in it, those of tied weights too.

    Raises:
        RequestError: one that transformers makes of others, or changes, on the way into memory.
    """
    try:  # inner parts of transformers, which may go or change: all else works without them
        from transformers.core_model_loading import (  # noqa: PLC0415
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )
    except ImportError as error:
        raise RequestError(f"this transformers names tensors in a way of its own: {REMEDY}") from error
    folder = source.snapshot
    if folder is None:
        raise RequestError(f"model {source.named!r} is not in the cache of the hub: {REMEDY}")
    files, tensors = tensor_files(folder), dict(_tensors(model))
    changes = model._weight_conversions  # noqa: SLF001 - those that the loading of this checkpoint has used
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    located: dict[int, Stored] = {}
    for key in sorted(files, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, tensors)
        if name not in tensors:
            name, pattern = key, None
        if pattern is not None:
            raise RequestError(
                f"model {source.named!r}: tensor {key!r} is converted on its way into memory, by itself or "
                f"with others, which reading block by block does not do: {REMEDY}"
            )
        if name in tensors:
            located.setdefault(id(tensors[name]), StoredTensor.at(files[key], key))
    for name, parameter in model.named_parameters():
        if id(parameter) not in located:
            raise RequestError(f"model {source.named!r}: {name} is not in its files by that name: {REMEDY}")
    return {name: located[id(one)] for name, one in tensors.items() if id(one) in located}


def _compute_(model: Any, source: CheckpointSource, kind: Any) -> None:
    """Give `model` what its files do not hold, such as the frequencies of rotary embeddings.

    They are those of a twin without weights, whose buffers are made in memory.
    """
    config = deepcopy(source.config)
    for part in (config, config.get_text_config()):
        part.dtype = torch.float32  # as transformers computes them, whatever type they are rounded to then
    with init_empty_weights(include_buffers=False):
        twin = (
            from_config(AutoModelForCausalLM, config, trust_remote_code=source.trusts_code)
            if kind is None
            else kind(config)
        )
    for name, module in twin.named_modules():
        own = model.get_submodule(name)
        for key, buffer in module.named_buffers(recurse=False):
            empty = own.get_buffer(key)
            if key in module._non_persistent_buffers_set:  # noqa: SLF001 - there is no other way to tell
                _put_(own, key, buffer.to(empty.dtype))
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_meta:
                vars(own)[key] = value


def _check_apart(blocks: Mapping[str, nn.Module], named: str) -> None:
    """Refuse blocks that share weights: what one of them made of them, the other would not know."""
    owners: dict[int, str] = {}
    for name, block in blocks.items():
        for key, tensor in _tensors(block):
            if owners.setdefault(id(tensor), name) != name:
                raise RequestError(
                    f"model {named!r}: {name}.{key} is a weight of {owners[id(tensor)]} too, and blocks that "
                    f"share weights are not read one by one: {REMEDY}"
                )


def _emptied(tensor: Tensor) -> Tensor:
    """A tensor like it on the meta device; a parameter for a parameter."""
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by their names, a shared one by each of its names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _replace_(model: nn.Module, old: Tensor, new: Tensor) -> None:
    """Put `new` wherever `old` is in the model."""
    for name in [name for name, tensor in _tensors(model) if tensor is old]:
        _put_(model, name, new)


def _put_(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Let `tensor` be the parameter or buffer of that name."""
    path, _, key = name.rpartition(".")
    owner = module.get_submodule(path)
    (owner._parameters if key in owner._parameters else owner._buffers)[key] = tensor  # type: ignore[assignment]  # noqa: SLF001
