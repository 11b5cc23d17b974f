"""Parts that no table knows, run on made-up inputs: which linears are called, and what cutting them does.

A *stand-in* is a copy of a module on the host with random float32 weights: what is found out about it holds
for any weights, and a norm or a bias that happens to hide a difference in a trained model hides none here.
The real inputs of a module are not at hand. The first argument gets hidden states, the usual arguments of an
attention get tensors of their usual shapes, and whatever else a forward asks for gets a square matrix
[tokens, tokens], as masks are.

A guess at which rows and columns belong together is put to the test by `computes_the_same`: the stand-in with
them cut must compute what it computes with the outputs of the units ignored.
"""

import copy
import inspect
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from owl_compress.models.removable import Axis
from owl_compress.models.structure import BlockSite, in_rows

logger = logging.getLogger(__name__)

T = TypeVar("T")
_TOKENS = 4
_ROUNDING = 64 * torch.finfo(torch.float32).eps
_HEAD_DIMS = ("head_dim", "head_size", "attention_head_size", "dim_head", "d_head")
_UNNEEDED = ("past_key_values", "past_key_value", "layer_past", "cache", "attention_mask", "use_cache")
_REMEMBERED = 256
_known: dict[Hashable, Any] = {}


@dataclass(frozen=True)
class Call:
    """A linear called by a forward pass, and the tensor that it read."""

    name: str
    inputs: Tensor


@dataclass(frozen=True)
class Probe:
    """A stand-in for a module, and arguments that its forward pass takes."""

    module: nn.Module
    arguments: Mapping[str, Any]

    @property
    def linears(self) -> dict[str, nn.Module]:
        """The linears below the module by their paths."""
        return linears_of(self.module)

    def run(self, module: nn.Module | None = None) -> Tensor:
        """What the stand-in, or a changed copy of it, makes of the arguments: [1, tokens, hidden]."""
        with torch.no_grad():
            outputs = (module or self.module)(**self.arguments)
        first: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
        return first

    def calls(self) -> list[Call]:
        """The linears in the order in which they are called."""
        found: list[Call] = []
        hooks = [
            linear.register_forward_pre_hook(
                lambda _module, inputs, name=name: found.append(Call(name, inputs[0]))
            )
            for name, linear in self.linears.items()
        ]
        try:
            self.run()
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def mixes_tokens(self) -> bool:
        """Whether the output of the last token depends on the first one."""
        name, hidden = next(iter(self.arguments.items()))
        changed = hidden.clone()
        changed[:, 0] *= -1
        outputs = self.run()
        others = Probe(self.module, {**self.arguments, name: changed}).run()
        return outputs.ndim == 3 and not torch.equal(outputs[:, -1], others[:, -1])


@dataclass(frozen=True)
class Rows:
    """Rows (axis "out") or columns ("in") of the linear at a path, int64 [entries]."""

    linear: str
    axis: Axis
    entries: Tensor


def candidates(site: BlockSite) -> Iterator[tuple[str, nn.Module]]:
    """Paths and modules below the block with two or more of its linears, those with few first.

    Of a module and what wraps it, the wrapped one comes first.
    """
    names = [linear.name.removeprefix(f"{site.name}.") for linear in site.all_linears]
    sizes = {
        path: sum(not path or name.startswith(f"{path}.") for name in names)
        for path, module in site.module.named_modules()
        if not isinstance(module, nn.ModuleList | nn.ModuleDict)
    }
    paths = [path for path, size in sizes.items() if size >= 2]
    for path in sorted(paths, key=lambda path: (sizes[path], -path.count("."))):
        yield path, site.module.get_submodule(path)


def linears_of(module: nn.Module) -> dict[str, nn.Module]:
    """The linears below `module` by their paths."""
    return {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear | Conv1D)}


def shape_of(linear: nn.Module) -> tuple[int, int]:
    """(out, in)."""
    rows, columns = in_rows(linear, linear.get_parameter("weight")).shape
    return rows, columns


def probe(module: nn.Module) -> Probe | None:
    """A stand-in with arguments that it takes; None if it takes none of those that are made up."""
    problem: Exception | None = None
    for size in _rotary_sizes(module):
        # A foreign forward pass with made-up inputs may fail in any way: none of them is news.
        try:
            stand_in = _stand_in(module)
            arguments = _made_up_arguments(stand_in, size)
            found = Probe(stand_in, arguments)
            hidden = next(iter(arguments.values()))
            if found.run().shape == hidden.shape:
                return found
        except Exception as error:  # noqa: BLE001
            problem = error
    logger.debug("%s cannot be run: %s", type(module).__name__, problem)
    return None


def owners(module: nn.Module) -> Iterator[Any]:
    """What may hold numbers that the forward pass reads: modules, and their configurations."""
    for inner in module.modules():
        yield inner
        if (config := getattr(inner, "config", None)) is not None:
            yield config


def stated(owner: Any, name: str) -> Any:
    """What a module or a configuration holds under `name`, None if nothing: no property of theirs is run."""
    own = vars(owner)
    shared = own.get("narrow_shared", owner)
    name_of_its_own = getattr(shared, "attribute_map", {}).get(name, name)
    return own.get(name, vars(shared).get(name_of_its_own))


def head_sizes(module: nn.Module) -> list[int]:
    """The sizes of heads that `module` or its configuration state."""
    values = (stated(owner, name) for owner in owners(module) for name in _HEAD_DIMS)
    return list(dict.fromkeys(value for value in values if isinstance(value, int) and value > 0))


def _rotary_sizes(module: nn.Module) -> list[int]:
    """Sizes that rotary embeddings of a head may have, the likely ones first."""
    stated = [
        value
        for owner in owners(module)
        for name, value in vars(owner).items()
        if "rotary" in name and isinstance(value, int) and not isinstance(value, bool)
    ]
    sizes = [*stated, *head_sizes(module)]
    sizes += [size // 2 for size in sizes]
    return [size for size in dict.fromkeys(sizes) if size > 0] or [2]


def computes_the_same(
    tried: Probe, output: str, units: Sequence[Rows], change: Callable[[nn.Module], None]
) -> bool:
    """Whether a stand-in without `units` computes what it computes with their columns of `output` zeroed.

    `change` tells a stand-in in place what it is to know of the cut.
    """
    try:
        ignoring, cut = copy.deepcopy(tried.module), copy.deepcopy(tried.module)
        for rows in units:
            if rows.linear == output and rows.axis == "in":
                weight = in_rows(found := linears_of(ignoring)[output], found.get_parameter("weight").data)
                weight[:, rows.entries] = 0
            _cut_(linears_of(cut)[rows.linear], rows.axis, rows.entries)
        change(cut)
        before, ignored, after = tried.run(), tried.run(ignoring), tried.run(cut)
    except Exception as error:  # noqa: BLE001 - a wrong guess may fail in any way
        logger.debug("%s is not made of such units: %s", type(tried.module).__name__, error)
        return False
    rounding = _ROUNDING * float(ignored.abs().max())
    return (
        after.shape == ignored.shape
        and bool((after - ignored).abs().max() <= rounding)
        and bool((before - ignored).abs().max() > rounding)
    )


def remembered(purpose: str, module: nn.Module, find: Callable[[], T]) -> T:
    """What `find` says of `module`, asked once for all modules of the same kind, sizes and settings.

    Blocks are alike, and several stages ask for the parts of each of them.
    """
    key = (purpose, type(module), _settings(module), tuple(_shapes(module)))
    if key not in _known:
        while len(_known) >= _REMEMBERED:
            _known.pop(next(iter(_known)))
        _known[key] = find()
    found: T = _known[key]
    return found


def _shapes(module: nn.Module) -> Iterator[Hashable]:
    for name, tensor in module.state_dict(keep_vars=True).items():
        yield name, tuple(tensor.shape)


def _settings(module: nn.Module) -> Hashable:
    """Plain values that a forward pass may read off the module, what is below it, and its configuration."""
    read: list[Hashable] = []
    for name, inner in module.named_modules():
        read.append((name, type(inner), *_plain_values(inner)))
        if (config := getattr(inner, "config", None)) is not None:
            read.append(
                (name, *_plain_values(getattr(config, "narrow_shared", config)), *_plain_values(config))
            )
    return tuple(read)


def _plain_values(owner: Any) -> Iterator[Hashable]:
    for name, value in vars(owner).items():
        if name not in {"layer_idx", "layer_id"} and isinstance(value, bool | int | float | str | None):
            yield name, value


def _stand_in(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)  # its own, so that no other random numbers change
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(_random(parameter.shape, generator), requires_grad=False)
        for parameter in module.parameters()
    }
    stand_in = copy.deepcopy(module, memo).to("cpu", torch.float32).eval()
    for inner in stand_in.modules():  # what hangs on the original reads what only the original is given
        for hooks in ("_forward_pre_hooks", "_forward_hooks"):
            vars(inner)[hooks].clear()
    return stand_in


def _random(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Weights that keep the size of their inputs, about; norms and biases all different."""
    values = torch.randn(tuple(shape), generator=generator)
    return values / max(shape) ** 0.5 if len(shape) > 1 else 0.5 + 0.3 * values


def _made_up_arguments(module: nn.Module, rotary_size: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    _, columns = shape_of(next(iter(linears_of(module).values())))
    hidden, *further = inspect.signature(module.forward).parameters.values()
    arguments: dict[str, Any] = {hidden.name: torch.randn(1, _TOKENS, columns, generator=generator)}
    angles = torch.rand(1, _TOKENS, rotary_size, generator=generator)
    usual = {
        "residual": torch.randn(1, _TOKENS, columns, generator=generator),
        "position_bias": torch.randn(1, _TOKENS, _TOKENS, generator=generator),  # the same for all heads
        "position_embeddings": (angles.cos(), angles.sin()),
        "position_ids": torch.arange(_TOKENS)[None],
        "cache_position": torch.arange(_TOKENS),
    }
    for parameter in further:
        if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
            continue
        if parameter.name in usual:
            arguments[parameter.name] = usual[parameter.name]
        elif parameter.default is parameter.empty:
            square = torch.randn(_TOKENS, _TOKENS, generator=generator)
            arguments[parameter.name] = None if parameter.name in _UNNEEDED else square
    return arguments


def _cut_(linear: nn.Module, axis: Axis, removed: Tensor) -> None:
    """Take rows (axis "out", with their biases) or columns ("in") from a linear of a stand-in."""
    weight = in_rows(linear, linear.get_parameter("weight").data)
    dimension = 0 if axis == "out" else 1
    stays = torch.ones(weight.shape[dimension], dtype=torch.bool)
    stays[removed] = False
    index = stays.nonzero().flatten()
    kept = in_rows(linear, weight.index_select(dimension, index)).contiguous()
    linear.register_parameter("weight", nn.Parameter(kept, requires_grad=False))
    if axis == "out" and getattr(linear, "bias", None) is not None:
        bias = linear.get_parameter("bias").data[index]
        linear.register_parameter("bias", nn.Parameter(bias, requires_grad=False))
    sizes = ("nf", "nx") if isinstance(linear, Conv1D) else ("out_features", "in_features")
    vars(linear)[sizes[dimension]] = len(index)
