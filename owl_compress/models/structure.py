"""Where the blocks and linears of a model are.

The table of `families` knows some by their `config.model_type`; any other decoder is found by structure.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from owl_compress.errors import RequestError
from owl_compress.models.adapters import refuse_adapters
from owl_compress.models.families import FAMILIES, UNKNOWN_ROLE, Family


@dataclass(frozen=True)
class LinearSite:
    """One weight matrix inside a block. `name` is the module's full name in the model."""

    name: str
    role: str
    module: nn.Module

    @property
    def weight(self) -> Tensor:
        """The weight as a view of shape [out, in]; writing to it writes to the model."""
        return in_rows(self.module, self.module.get_parameter("weight").data)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, columns = self.weight.shape
        return rows, columns

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return self.weight.numel()


@dataclass(frozen=True)
class BlockSite:
    """One transformer block and its linears, in the order in which the module lists them.

    `emptied` are those without a single weight, which is all there is of a sublayer that was removed whole:
    nothing there can be measured or compressed, but the shapes and parts of the block include them.
    """

    name: str
    module: nn.Module
    linears: tuple[LinearSite, ...]
    family: str = "unknown"
    emptied: tuple[LinearSite, ...] = ()

    @property
    def n_weights(self) -> int:
        """Number of weights in all linears."""
        return sum(linear.n_weights for linear in self.linears)

    @property
    def all_linears(self) -> tuple[LinearSite, ...]:
        """The linears, the emptied ones too."""
        return (*self.linears, *self.emptied)


@dataclass(frozen=True)
class ModelStructure:
    """The compressible part of a model.

    `notes` say what was found without the family table. `uncalled` names linears that are left out, because
    the model reads their weights without calling them; they are known once the structure `is_settled`, that
    is, once a walk over it was compared with the model's own forward pass. `spared` are linears that will get
    no budget: one of them that no token reaches while others are measured is no error, and has no metrics.
    """

    family: str
    bos: Literal["every", "first"]
    blocks: tuple[BlockSite, ...]
    notes: tuple[str, ...] = ()
    uncalled: tuple[str, ...] = ()
    is_settled: bool = False
    spared: frozenset[str] = frozenset()

    @property
    def linears(self) -> Iterator[LinearSite]:
        """All linears of all blocks, in order."""
        return (linear for block in self.blocks for linear in block.linears)

    @property
    def linear_sizes(self) -> dict[str, int]:
        """Number of weights by the name of the linear."""
        return {linear.name: linear.n_weights for linear in self.linears}


def find_structure(model: nn.Module) -> ModelStructure:
    """Find the blocks and linears of `model`.

    A block that has no linear is an error; one whose linears have all lost their weights is not: it stays in
    the walk, which runs it, and has nothing that could get a budget.

    Raises:
        RequestError: no list of blocks, a block without any linear, weights that are quantized already, or an
            adapter that is not merged.
    """
    refuse_adapters(model)
    model_type = str(getattr(getattr(model, "config", None), "model_type", "unknown"))
    family = FAMILIES.get(model_type) or Family(model_type, "", {})
    path, blocks = family.blocks, _module_list(model, family.blocks)
    notes = []
    if blocks is None:
        path, blocks = _block_list(model)
        reason = "has no blocks at its usual place" if model_type in FAMILIES else "is not in the table"
        notes = [f"family {model_type!r} {reason}; blocks found by structure at {path!r}"]
    taken: set[int] = set()
    sites = []
    for index, block in enumerate(blocks):
        name = f"{path}.{index}"
        site, shared = _find_linears(BlockSite(name, block, (), family.name), family.roles, taken)
        notes += [
            f"{linear} shares its weight with an earlier linear and is compressed once" for linear in shared
        ]
        if not site.all_linears and not shared:
            raise RequestError(
                f"block {name} ({type(block).__name__}) has no linear: nothing there to compress"
            )
        sites.append(site)
    notes += _notes_on_emptied(sites)
    return ModelStructure(family.name, family.bos, tuple(sites), tuple(notes))


def check_compressible(structure: ModelStructure) -> None:
    """Refuse a model whose blocks have nothing that could be measured or compressed.

    Raises:
        RequestError: there are no blocks, or every linear of them was removed before, or is never called.
    """
    if not structure.blocks:
        raise RequestError(
            "the model has no blocks (num_hidden_layers in its config.json): nothing there to compress"
        )
    if any(block.linears for block in structure.blocks):
        return
    if structure.uncalled:
        raise RequestError(
            f"the model calls none of the {len(structure.uncalled)} linears of its blocks on text, "
            f"{structure.uncalled[0]} first: their inputs cannot be measured"
        )
    raise RequestError(
        f"nothing is left to compress in the {len(structure.blocks)} blocks of the model, all of whose "
        "heads and channels were removed before: start from the model as it was"
    )


def without_linears(structure: ModelStructure, uncalled: Collection[str]) -> ModelStructure:
    """`structure` without the linears of these names, which the model reads without calling them."""
    if not uncalled:
        return structure
    blocks = tuple(
        replace(site, linears=tuple(linear for linear in site.linears if linear.name not in uncalled))
        for site in structure.blocks
    )
    names = tuple(linear.name for linear in structure.linears if linear.name in uncalled)
    note = (
        "left as they are, since the model does not call them on text (it reads their weights, or has no use "
        f"for them): {len(names)} linears, the first {names[0]}"
    )
    return replace(structure, blocks=blocks, notes=(*structure.notes, note), uncalled=names)


def found_again(model: nn.Module, structure: ModelStructure) -> ModelStructure:
    """`structure`, which is of another copy of `model`, in this one."""
    found = without_linears(find_structure(model), structure.uncalled)
    return replace(found, notes=structure.notes, is_settled=structure.is_settled)


def _notes_on_emptied(sites: Sequence[BlockSite]) -> list[str]:
    """One line on all linears that are left out because they hold no weights."""
    names = [linear.name for site in sites for linear in site.emptied]
    if not names:
        return []
    return [
        f"linears without weights, of sublayers that were removed before, get no budget: {len(names)}, "
        f"the first {names[0]}"
    ]


def _module_list(model: nn.Module, path: str) -> nn.ModuleList | None:
    """The ModuleList at `path`, if there is one."""
    try:
        found = model.get_submodule(path)
    except AttributeError:
        return None
    return found if isinstance(found, nn.ModuleList) else None


def _find_linears(bare: BlockSite, roles: Mapping[str, str], taken: set[int]) -> tuple[BlockSite, list[str]]:
    """`bare` with its linears, and the names of those whose weight is in `taken` (extended here) already."""
    found: list[LinearSite] = []
    emptied: list[LinearSite] = []
    shared = []
    for name, module in bare.module.named_modules(remove_duplicate=False):
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        full_name = f"{bare.name}.{name}"
        site = LinearSite(full_name, roles.get(name, UNKNOWN_ROLE), module)
        _check_is_stored(full_name, module)
        if id(module.weight) in taken:
            shared.append(full_name)
            continue
        check_is_plain(full_name, module.weight)
        taken.add(id(module.weight))
        (found if module.weight.numel() else emptied).append(site)
    return replace(bare, linears=tuple(found), emptied=tuple(emptied)), shared


def _check_is_stored(name: str, module: nn.Module) -> None:
    """Refuse a weight that is computed from others whenever it is read: what is written to it is lost.

    Raises:
        RequestError: see above; `name` is the linear's.
    """
    if "weight" not in dict(module.named_parameters(recurse=False)):
        raise RequestError(
            f"{name} computes its weight (torch.nn.utils.parametrize or prune does that): make it permanent "
            "first, with parametrize.remove_parametrizations or prune.remove"
        )


def check_is_plain(name: str, weight: Tensor) -> None:
    """Refuse a weight that is not what its elements say: integer codes, 8-bit floats, packed tensors.

    Raises:
        RequestError: see above; `name` is the linear's.
    """
    is_ordinary = type(weight) in (Tensor, nn.Parameter)  # torchao and others have subclasses that unpack
    if is_ordinary and weight.is_floating_point() and weight.element_size() > 1:
        return
    found = str(weight.dtype) if is_ordinary else type(weight).__name__
    raise RequestError(f"{name} holds {found}: the model is quantized already; give the original")


def _block_list(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Path and module of the list of the decoder's blocks, of one class or of several (Jamba).

    Lists inside a list (the experts of each block) do not count, and neither do those outside of what the
    model calls its decoder (a vision tower), if there are others. Of several the one with as many blocks as
    the configuration says is taken, then one of like modules, then the longest, then the largest.
    """
    decoder, n_blocks = _decoder_path(model), _n_blocks(model)

    def rank(candidate: tuple[str, nn.ModuleList]) -> tuple[bool, bool, bool, int, int]:
        path, blocks = candidate
        is_inside = not decoder or path.startswith(f"{decoder}.")
        size = sum(parameter.numel() for parameter in blocks.parameters())
        return is_inside, len(blocks) == n_blocks, _are_alike(blocks), len(blocks), size

    lists: list[tuple[str, nn.ModuleList]] = []
    outer: list[str] = []
    for path, module in model.named_modules():  # parents come before their children
        if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{above}.") for above in outer):
            continue
        if len(module) > 1:
            outer.append(path)
        if _may_be_blocks(module):
            lists.append((path, module))
    if not lists:
        raise RequestError(
            f"{type(model).__name__} has no list of blocks with linears in it: the architecture is unknown"
        )
    return max(lists, key=rank)


def _may_be_blocks(modules: nn.ModuleList) -> bool:
    """Whether there are linears, and, where the modules are not all alike, linears inside each of them."""
    if _are_alike(modules):
        return _has_linear(modules)
    return all(_has_linear(module) and not isinstance(module, nn.Linear | Conv1D) for module in modules)


def _has_linear(module: nn.Module) -> bool:
    return any(isinstance(inner, nn.Linear | Conv1D) for inner in module.modules())


def _are_alike(modules: nn.ModuleList) -> bool:
    return len({type(module) for module in modules}) == 1


def _decoder_path(model: nn.Module) -> str:
    """Where the part lies that the model calls its decoder; empty if it is all of it, or not known."""
    try:
        decoder = model.get_decoder() if isinstance(model, PreTrainedModel) else model
    except (AttributeError, NotImplementedError):
        return ""
    return next((path for path, module in model.named_modules() if module is decoder), "")


def _n_blocks(model: nn.Module) -> int | None:
    """How many blocks the configuration announces."""
    config = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if isinstance(config, PretrainedConfig) else config
    return getattr(text, "num_hidden_layers", None)


def in_rows(module: nn.Module, stored: Tensor) -> Tensor:
    """The weight of a linear as a view of shape [out, in], however the module stores it."""
    return stored.t() if isinstance(module, Conv1D) else stored  # Conv1D stores [in, out]
