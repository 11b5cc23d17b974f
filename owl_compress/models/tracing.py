"""The feed-forward of a block that no table knows, found by following its forward pass.

torch_pruning's DependencyGraph says which linears have to lose channels together. It takes every operation
that it does not know for an element-wise one, so its answer is only a guess here, and is put to the test: the
module with half of these channels cut must compute what it computes with their outputs ignored.

The block's real inputs are not at hand. Modules inside it are tried first, from the smallest up, since a
feed-forward usually is a module that takes hidden states and nothing else; whatever else a forward asks for
gets a square matrix [tokens, tokens], as masks are. A block that wants other things, experts behind a router,
a fused gate_up and weights that are no `nn.Linear` are not found. It takes two float32 copies of the module.
"""

import copy
import inspect
import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from owl_compress.models.structure import BlockSite, LinearSite

logger = logging.getLogger(__name__)

_TOKENS = 4
Linears = dict[str, nn.Linear]


def trace_feed_forward(site: BlockSite) -> tuple[list[LinearSite], LinearSite] | str:
    """The linears whose outputs are the channels and the one that reads them, or why none was found."""
    sites = {linear.name.removeprefix(f"{site.name}."): linear for linear in site.linears}
    for path, module in _candidates(site.module, set(sites)):
        found = _try(module)
        if found is None:
            continue
        alike = sum(type(other) is type(module) for other in site.module.modules())
        if alike > 1:
            return f"it has {alike} feed-forwards ({type(module).__name__})"
        names = [f"{path}.{name}".lstrip(".") for name in found]
        return [sites[name] for name in names[:-1]], sites[names[-1]]
    return "no pair of linears with channels between them was found by tracing it with made-up inputs"


def _candidates(block: nn.Module, names: set[str]) -> Iterator[tuple[str, nn.Module]]:
    """Modules with two or more of the linears, those with few first."""
    sizes = {
        path: sum(not path or name.startswith(f"{path}.") for name in names)
        for path, module in block.named_modules()
        if not isinstance(module, nn.ModuleList | nn.ModuleDict)
    }
    for path in sorted((path for path, size in sizes.items() if size >= 2), key=lambda path: sizes[path]):
        yield path, block.get_submodule(path)


def _try(module: nn.Module) -> list[str] | None:
    """Names below `module` of the linears with channels, the one that reads them last; None if none fit."""
    # A foreign forward pass with made-up inputs may fail in any way, and so may the tracer: neither is news.
    try:
        with torch.enable_grad():
            trial = copy.deepcopy(module).float().requires_grad_().eval()
            linears = {name: m for name, m in trial.named_modules() if isinstance(m, nn.Linear)}
            for group in _groups(trial, linears):
                if _may_be_cut(copy.deepcopy(trial), group):
                    return group
    except Exception as error:  # noqa: BLE001
        logger.debug("%s cannot be traced: %s", type(module).__name__, error)
    return None


def _groups(module: nn.Module, linears: Linears) -> Iterator[list[str]]:
    """Linears that lose outputs together, and the only one that loses inputs with them, last."""
    import torch_pruning  # noqa: PLC0415 - only unknown families need it

    graph = torch_pruning.DependencyGraph()
    graph.build_dependency(module, _made_up_inputs(module, linears), verbose=False)
    names = {linear: name for name, linear in linears.items()}
    for linear in linears.values():
        if linear not in graph.module2node:
            continue
        first: list[str] = []
        last: list[str] = []
        for dependency, _ in graph.get_pruning_group(linear, torch_pruning.prune_linear_out_channels, [0]):
            target = dependency.target.module
            is_out = graph.is_out_channel_pruning_fn(dependency.handler)
            if target in names:
                (first if is_out else last).append(names[target])
            elif isinstance(target, nn.Module) and any(True for _ in target.parameters()):
                break  # a norm over the channels, or something else with weights of its own
        else:
            if len(last) == 1 and all(
                linears[name].out_features == linears[last[0]].in_features for name in first
            ):
                yield [*first, *last]


def _made_up_inputs(module: nn.Module, linears: Linears) -> dict[str, Tensor]:
    weight = next(iter(linears.values())).weight
    generator = torch.Generator().manual_seed(0)  # on the host, so that no other random numbers change
    hidden, *further = inspect.signature(module.forward).parameters.values()
    shapes = {hidden.name: (1, _TOKENS, weight.shape[1])} | {
        parameter.name: (_TOKENS, _TOKENS)
        for parameter in further
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty
    }
    return {name: torch.randn(shape, generator=generator).to(weight) for name, shape in shapes.items()}


def _may_be_cut(module: nn.Module, group: list[str]) -> bool:
    """Whether cutting half of the channels gives what ignoring them gives. Changes `module`."""
    import torch_pruning  # noqa: PLC0415

    linears = {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear)}
    *first, last = (linears[name] for name in group)
    inputs = _made_up_inputs(module, linears)
    removed = list(range(0, last.in_features, 2))
    with torch.no_grad():
        before = _run(module, inputs)
        last.weight[:, removed] = 0
        ignored = _run(module, inputs)
        for linear in first:
            torch_pruning.prune_linear_out_channels(linear, removed)
        torch_pruning.prune_linear_in_channels(last, removed)
        cut = _run(module, inputs)
    close = 16 * torch.finfo(ignored.dtype).eps * float(ignored.abs().max())
    return bool((cut - ignored).abs().max() <= close < (before - ignored).abs().max())


def _run(module: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    outputs = module(**inputs)
    first: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
    return first
