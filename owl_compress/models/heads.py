"""The heads of an attention that no table knows, found by running it.

An attention mixes tokens, projects the states that it is given, all of them, to queries, keys and values,
and puts what it makes of them through one output projection. How many heads there are follows from the size
of one; how a fused projection holds them, and which numbers the forward pass reads off its module or its
configuration, is guessed from a few ways in which it is usually done. Every guess is proven, see `probing`:
without some groups, or some query heads of each group, the attention computes what it computes with their
columns of the output projection zeroed. Norms over all heads, weights for each head that are no linear, low
ranks between states and heads, and cross attention do not pass, and are refused.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from owl_compress.models.probing import (
    Probe,
    Rows,
    candidates,
    computes_the_same,
    head_sizes,
    owners,
    probe,
    remembered,
    shape_of,
    stated,
)
from owl_compress.models.removable import Attention, Count, Counted, Slot
from owl_compress.models.structure import BlockSite

# What forward passes call the numbers that they read.
_COUNTS: Mapping[str, Count] = {
    **dict.fromkeys(("num_heads", "num_attention_heads", "n_heads", "n_head"), "heads"),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads"), "kv_heads"),
    **dict.fromkeys(("num_key_value_groups", "n_rep"), "queries_per_group"),
}
_WIDTHS: Mapping[str, Count] = dict.fromkeys(
    ("split_size", "all_head_size", "embed_dim", "hidden_size", "inner_dim"), "width"
)


def find_heads(site: BlockSite) -> Attention | str:
    """The only attention of the block, its linears by their full names, or why none was recognised."""
    reason = ""
    for path, module in candidates(site):
        found = remembered("heads", module, partial(_recognise, module))
        if found is None:
            continue
        if isinstance(found, str):
            reason = reason or found
            continue
        alike = sum(type(other) is type(module) for other in site.module.modules())
        if alike > 1:
            return f"it has {alike} attentions ({type(module).__name__})"
        return _named(found, site.name, path)
    return reason or "no part that mixes tokens was found by running it on made-up inputs"


def _named(found: Attention, block: str, path: str) -> Attention:
    """`found` with full names where it has those below the module at `path`."""
    prefix = ".".join(part for part in (block, path) if part)

    def slots(those: tuple[Slot, ...]) -> tuple[Slot, ...]:
        return tuple(replace(slot, linear=f"{prefix}.{slot.linear}") for slot in those)

    counted = replace(found.counted, module=path) if found.counted else None
    return replace(
        found,
        queries=slots(found.queries),
        keys_values=slots(found.keys_values),
        output=f"{prefix}.{found.output}",
        counted=counted,
    )


def _recognise(module: nn.Module) -> Attention | str | None:
    """The heads of `module`, why it is not recognised though it mixes tokens, or None if it does not."""
    tried = probe(module)
    if tried is None or not tried.mixes_tokens():
        return None
    projections = _projections(tried)
    if isinstance(projections, str):
        return projections
    for head_dim in _head_dims(module, projections.width):
        for guess in _guesses(projections, head_dim):
            for counted in _countings(module, guess):
                if _is_made_of(tried, attention := replace(guess, counted=counted)):
                    return attention
    return (
        f"{type(module).__name__} does not compute without a head what it computes with the output of that "
        "head ignored"
    )


@dataclass(frozen=True)
class _Projections:
    """Linears that read the states, by their rows in the order of their calls, and the one that comes last.

    `width` is the number of columns of `output`.
    """

    rows: Mapping[str, int]
    output: str
    width: int


def _projections(tried: Probe) -> _Projections | str:
    calls = tried.calls()
    names = [call.name for call in calls]
    kind = type(tried.module).__name__
    if len(names) < 2 or sorted(names) != sorted(tried.linears):
        return f"{kind} does not call each of its linears once"
    if any(call.inputs is not calls[0].inputs for call in calls[:-1]):
        return f"not all queries, keys and values of {kind} come straight from the hidden states"
    rows = {name: shape_of(tried.linears[name])[0] for name in names[:-1]}
    output, width = tried.linears[names[-1]], int(calls[-1].inputs.shape[-1])
    if shape_of(output)[0] != calls[0].inputs.shape[-1]:
        return f"{names[-1]} does not return to the hidden size"
    return _Projections(rows, names[-1], width)


def _head_dims(module: nn.Module, width: int) -> list[int]:
    """Sizes that a head may have, from what the module and its configuration say."""
    heads = [name for name, what in _COUNTS.items() if what == "heads"]
    values = (stated(owner, name) for owner in owners(module) for name in heads)
    counts = [value for value in values if isinstance(value, int) and value > 0]
    sizes = [*head_sizes(module), *(width // count for count in counts)]
    return [size for size in dict.fromkeys(sizes) if size and width % size == 0]


def _guesses(projections: _Projections, head_dim: int) -> Iterator[Attention]:
    """Attentions with heads of `head_dim`, as their linears may hold them."""
    find = _fused if len(projections.rows) == 1 else _separate
    return find(projections, head_dim)


def _fused(projections: _Projections, head_dim: int) -> Iterator[Attention]:
    """One linear for queries, keys and values."""
    ((name, rows),) = projections.rows.items()
    n_heads, n_kv_heads = projections.width // head_dim, (rows - projections.width) // (2 * head_dim)
    if n_kv_heads < 1 or rows != (n_heads + 2 * n_kv_heads) * head_dim or n_heads % n_kv_heads:
        return
    for layout in (by_group, concatenated):
        queries, keys_values = layout(n_heads, n_kv_heads, head_dim)
        yield _attention(projections, head_dim, {name: queries}, {name: keys_values})


def _separate(projections: _Projections, head_dim: int) -> Iterator[Attention]:
    """One linear for each, and maybe more as wide as the queries; keys and values are the narrow ones.

    Where all are equal it does not matter which is which.
    """
    rows, width = projections.rows, projections.width
    smallest = min(rows.values())
    narrow = [name for name in rows if rows[name] == smallest]
    keys_values = narrow if smallest < width else narrow[1:3]
    queries = [name for name in rows if name not in keys_values]
    if smallest % head_dim or len(keys_values) != 2 or not queries:
        return
    n_heads, n_kv_heads = width // head_dim, smallest // head_dim
    if n_heads % n_kv_heads or any(rows[name] != width for name in queries):
        return
    yield _attention(
        projections,
        head_dim,
        {name: units(n_heads, head_dim) for name in queries},
        {name: units(n_kv_heads, head_dim) for name in keys_values},
    )


def _attention(
    projections: _Projections,
    head_dim: int,
    queries: Mapping[str, Tensor],
    keys_values: Mapping[str, Tensor],
) -> Attention:
    n_heads, n_kv_heads = projections.width // head_dim, len(next(iter(keys_values.values())))
    output = Slot(projections.output, "in", units(n_heads, head_dim))
    return Attention(
        n_heads,
        n_kv_heads,
        head_dim,
        (*(Slot(name, "out", index) for name, index in queries.items()), output),
        tuple(Slot(name, "out", index) for name, index in keys_values.items()),
        projections.output,
    )


def concatenated(n_heads: int, n_kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Rows of queries, and of keys and values, where all queries come first, then all keys, then all values.

    Shapes [heads, head_dim] and [kv_heads, 2 * head_dim].
    """
    heads = units(n_heads + 2 * n_kv_heads, head_dim)
    queries, keys, values = torch.split(heads, [n_heads, n_kv_heads, n_kv_heads])
    return queries, torch.cat([keys, values], dim=1)


def by_group(n_heads: int, n_kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """The same where each key-value head has its queries, its key and its value together."""
    n_queries = n_heads // n_kv_heads if n_kv_heads else 0
    groups = torch.arange((n_heads + 2 * n_kv_heads) * head_dim).view(n_kv_heads, n_queries + 2, head_dim)
    queries = groups[:, :-2].reshape(n_heads, head_dim)
    return queries, torch.cat([groups[:, -2], groups[:, -1]], dim=1)


def units(n_units: int, size: int) -> Tensor:
    """Indices of `n_units` units of `size` neighbouring entries, shape [units, entries]."""
    return torch.arange(n_units * size).view(n_units, size)


def _countings(module: nn.Module, guess: Attention) -> Iterator[Counted]:
    """What the forward pass may read, the least first."""
    counts = _counts_in(module, guess, _COUNTS)
    widths = _counts_in(module, guess, _WIDTHS)
    config = getattr(module, "config", None)
    in_config: dict[str, Count] = {
        name: what
        for name, what in _COUNTS.items()
        if what != "queries_per_group"
        and config is not None
        and stated(config, name) == guess.count(what, guess.n_heads, guess.n_kv_heads)
    }
    for read, further in product((counts, counts | widths), ({}, in_config)):
        yield Counted("", read, further)


def _counts_in(module: nn.Module, guess: Attention, names: Mapping[str, Count]) -> dict[str, Count]:
    """Paths of the attributes that have one of `names` and the value that it stands for."""
    return {
        f"{path}.{name}".lstrip("."): what
        for path, inner in module.named_modules()
        for name, what in names.items()
        if vars(inner).get(name) == guess.count(what, guess.n_heads, guess.n_kv_heads)
    }


def _is_made_of(tried: Probe, attention: Attention) -> bool:
    """Whether groups, and query heads of each group, can go; one of both if there is no other."""
    cuts = list(_trial_cuts(attention))
    return bool(cuts) and all(_may_go(tried, attention, heads, kv_heads) for heads, kv_heads in cuts)


def _trial_cuts(attention: Attention) -> Iterator[tuple[list[int], list[int]]]:
    """Query heads and key-value heads that are taken away together."""
    per_group = attention.n_queries_per_group
    if attention.n_kv_heads > 1:
        gone = list(range(0, attention.n_kv_heads, 2))
        yield [group * per_group + query for group in gone for query in range(per_group)], gone
    if per_group > 1:
        yield [group * per_group + group % per_group for group in range(attention.n_kv_heads)], []


def _may_go(tried: Probe, attention: Attention, heads: list[int], kv_heads: list[int]) -> bool:
    rows = [Rows(slot.linear, slot.axis, slot.index[heads].flatten()) for slot in attention.queries]
    rows += [Rows(slot.linear, slot.axis, slot.index[kv_heads].flatten()) for slot in attention.keys_values]
    left = attention.n_heads - len(heads), attention.n_kv_heads - len(kv_heads)
    return computes_the_same(tried, attention.output, _joined(rows), _telling(attention, *left))


def _joined(rows: Sequence[Rows]) -> list[Rows]:
    """All entries of one side of one linear together, since cutting changes the indices of the others."""
    sides: dict[tuple[str, Any], list[Tensor]] = {}
    for one in rows:
        sides.setdefault((one.linear, one.axis), []).append(one.entries)
    return [Rows(linear, axis, torch.cat(parts)) for (linear, axis), parts in sides.items()]


def _telling(attention: Attention, n_heads: int, n_kv_heads: int) -> Callable[[nn.Module], None]:
    """What makes a stand-in believe that it has so many heads."""

    def tell(module: nn.Module) -> None:
        counted = attention.counted
        if counted is None:
            return
        for path, what in counted.attributes.items():
            owner, _, name = path.rpartition(".")
            setattr(module.get_submodule(owner), name, attention.count(what, n_heads, n_kv_heads))
        for key, what in counted.config.items():
            setattr(module.config, key, attention.count(what, n_heads, n_kv_heads))

    return tell
