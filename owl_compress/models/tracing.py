"""The feed-forward of a block that no table knows, found by running it; see `probing`.

It is one linear or two that read the same states, and one whose columns are their rows: a fused projection
has twice as many, the halves of a gate and of what it gates. Many other pairs look like that (adapters of low
rank, gates of a few values), so the number of channels has to be one that the configuration states for the
inside of a feed-forward; where it states none, no less than the hidden size. Experts behind a router, and
weights that are no `nn.Linear`, are not found.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from owl_compress.models.probing import (
    Call,
    Probe,
    Rows,
    candidates,
    computes_the_same,
    probe,
    remembered,
    shape_of,
)
from owl_compress.models.structure import BlockSite

_INNER_WORDS = ("intermediate", "inner", "ffn", "feed_forward", "d_ff", "ff_dim")


@dataclass(frozen=True)
class Channels:
    """Linears by name, with the rows of each that belong to a channel, int64 [channels, entries].

    `output` is the linear that has a column for each channel.
    """

    rows: dict[str, Tensor]
    output: str

    @property
    def n_channels(self) -> int:
        """Number of columns of `output`."""
        return len(next(iter(self.rows.values())))


def trace_feed_forward(site: BlockSite) -> Channels | str:
    """The channels, with the full names of their linears, or why none were found."""
    reason = "no pair of linears with channels between them was found by running it on made-up inputs"
    was_cut = hasattr(site.module, "narrow_widths")
    found: dict[str, Channels] = {}
    for path, module in candidates(site):
        channels = remembered("channels", module, partial(_recognise, module))
        alike = sum(type(other) is type(module) for other in site.module.modules())
        for one in channels:
            prefix = ".".join(part for part in (site.name, path) if part)
            named = Channels(
                {f"{prefix}.{k}": rows for k, rows in one.rows.items()}, f"{prefix}.{one.output}"
            )
            if (problem := _odd_size(site, named)) is not None:
                reason = problem
            elif alike > 1:
                return f"it has {alike} feed-forwards ({type(module).__name__})"
            elif was_cut:  # any number of channels may be what is left
                found.setdefault(named.output, named)
            else:
                return named
    if len(found) > 1:
        return f"{' and '.join(sorted(found))} could each be the last linear of it"
    return next(iter(found.values()), reason)


def _recognise(module: nn.Module) -> list[Channels]:
    """Linears of `module` with channels between them, which can be cut."""
    tried = probe(module)
    return [guess for guess in _guesses(tried) if _may_be_cut(tried, guess)] if tried else []


def _guesses(tried: Probe) -> Iterator[Channels]:
    """By shapes: every linear with those called before it whose rows could be its channels."""
    calls = tried.calls()
    shapes = {call.name: shape_of(tried.linears[call.name]) for call in calls}
    for index, last in enumerate(calls):
        hidden, n_channels = shapes[last.name]
        for fused in (1, 2):
            first = [call for call in calls[:index] if shapes[call.name] == (fused * n_channels, hidden)]
            if not first or not _read_the_same(first) or len(first) > 2 // fused:
                continue
            for rows in _layouts(n_channels, fused):
                yield Channels({call.name: rows for call in first}, last.name)


def _read_the_same(calls: list[Call]) -> bool:
    return all(call.inputs is calls[0].inputs for call in calls)


def _layouts(n_channels: int, fused: int) -> Iterator[Tensor]:
    """Rows of each channel: the other half may come after the first, or each row of it after its own."""
    yield torch.arange(fused * n_channels).view(fused, n_channels).t()
    if fused > 1:
        yield torch.arange(fused * n_channels).view(n_channels, fused)


def _may_be_cut(tried: Probe, channels: Channels) -> bool:
    """Whether half of the channels can go."""
    gone = torch.arange(0, channels.n_channels, 2)
    rows = [Rows(name, "out", index[gone].flatten()) for name, index in channels.rows.items()]
    return computes_the_same(
        tried, channels.output, [*rows, Rows(channels.output, "in", gone)], lambda _: None
    )


def _odd_size(site: BlockSite, channels: Channels) -> str | None:
    """Why so many channels are not those of a feed-forward; None where they may be."""
    n_channels = channels.n_channels
    hidden = next(linear.shape[0] for linear in site.all_linears if linear.name == channels.output)
    stated = set(_inner_sizes(site.module))
    was_cut = hasattr(site.module, "narrow_widths")
    if stated and (n_channels in stated or (was_cut and n_channels < max(stated))):
        return None
    if not stated and (n_channels >= hidden or was_cut):
        return None
    wanted = f"the {_listed(stated)} of a feed-forward" if stated else f"at least the {hidden} of its output"
    return (
        f"{channels.output} has {n_channels} columns, not {wanted}, and no other pair of linears with "
        "channels between them was found"
    )


def _inner_sizes(block: nn.Module) -> Iterator[int]:
    """Sizes that a configuration below `block` states for the inside of feed-forwards."""
    for module in block.modules():
        if (config := getattr(module, "config", None)) is not None:
            config = getattr(config, "narrow_shared", config)
            for name, value in vars(config).items():
                if any(word in name for word in _INNER_WORDS):
                    yield from (size for size in _numbers(value) if size > 0)


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


def _listed(sizes: set[int]) -> str:
    return " or ".join(str(size) for size in sorted(sizes))
