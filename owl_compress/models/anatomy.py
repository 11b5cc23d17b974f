"""What can be removed from a block whole: FFN channels and attention heads, and where each of them lies.

The words are those of `removable`. The table of families says where the parts of some lie; those of any other
are found by running the block, see `heads` and `tracing`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from owl_compress.documents.units import Sublayer
from owl_compress.models.families import FAMILIES
from owl_compress.models.heads import by_group, concatenated, find_heads, units
from owl_compress.models.removable import Attention, Axis, BlockAnatomy, FeedForward, Slot
from owl_compress.models.structure import BlockSite, LinearSite, ModelStructure
from owl_compress.models.tracing import trace_feed_forward

__all__ = [
    "Attention",
    "Axis",
    "BlockAnatomy",
    "FeedForward",
    "Slot",
    "below",
    "find_anatomy",
    "find_roles",
]

# How a fused projection holds queries, keys and values: all queries, then all keys, then all values; or for
# each key-value head its queries, its key and its value (with one key-value head this is multi-query).
_CONCATENATED = {"phi3", "gpt2"}


def find_anatomy(site: BlockSite) -> BlockAnatomy:
    """The removable parts of the block, by its family and the shapes that its linears have now.

    A feed-forward that the table of families does not know is looked for by tracing; see `tracing`.
    """
    attention, mlp = _find_attention(site), _find_feed_forward(site)
    found = {Sublayer.ATTENTION: attention, Sublayer.MLP: mlp}
    return BlockAnatomy(
        site.name,
        attention if isinstance(attention, Attention) else None,
        mlp if isinstance(mlp, FeedForward) else None,
        {part: reason for part, reason in found.items() if isinstance(reason, str)},
    )


def find_roles(structure: ModelStructure) -> dict[str, str]:
    """The role of every linear by its name.

    In a family that is not in the table the roles are those of an attention and a feed-forward found by
    running the first block that has lost none of its linears, for all blocks whose linears have the same
    names. There `mlp.fc1` is where channels begin, `mlp.fc2` where they end. Everything else stays of an
    unknown role.
    """
    roles = {linear.name: linear.role for linear in structure.linears}
    first = next((site for site in structure.blocks if not site.emptied), structure.blocks[0])
    if structure.family in FAMILIES:
        return roles
    found = {below(first, name): role for name, role in _roles_of(find_anatomy(first)).items()}
    names = {below(first, linear.name) for linear in first.linears}
    for site in structure.blocks:
        if {below(site, linear.name) for linear in site.linears} == names:
            roles |= {f"{site.name}.{name}": role for name, role in found.items()}
    return roles


def _roles_of(anatomy: BlockAnatomy) -> dict[str, str]:
    """The roles of the linears of the parts."""
    roles = {
        slot.linear: "mlp.fc1" if slot.axis == "out" else "mlp.fc2"
        for slot in (anatomy.mlp.channels if anatomy.mlp else ())
    }
    if (attention := anatomy.attention) is None:
        return roles
    queries, keys_values = (
        [slot.linear for slot in slots if slot.axis == "out"]
        for slots in (attention.queries, attention.keys_values)
    )
    if queries == keys_values:
        roles[queries[0]] = "attn.qkv"
    else:
        # What else is as wide as the queries gates what comes of them.
        roles |= dict(zip(queries, ["attn.q", *["attn.gate"] * (len(queries) - 1)], strict=True))
        roles |= dict(zip(keys_values, ("attn.k", "attn.v"), strict=True))
    return roles | {attention.output: "attn.o"}


def _find_attention(site: BlockSite) -> Attention | str:
    """The attention of the block, or why it is not recognised."""
    if site.family not in FAMILIES:
        found = find_heads(site)
        if isinstance(found, str):
            return f"no table says where the heads of family {site.family!r} lie, and {found}"
        return found
    roles = {linear.role: linear for linear in site.all_linears}
    missing = [role for role in _attention_roles(site.family) if role not in roles]
    if missing:
        return f"it has no linear in the role of {' and '.join(missing)}"
    output = roles["attn.o"]
    module = site.module.get_submodule(below(site, output.name).rpartition(".")[0])
    if getattr(module, "slow_but_exact", False) and getattr(module, "pretraining_tp", 1) > 1:
        return "slow_but_exact cuts its output projection into slices of the original size"
    head_dim = int(getattr(module, "head_dim", 0) or getattr(module, "head_size", 0))
    if "attn.qkv" in roles:
        return _fused(site.family, roles["attn.qkv"], output, head_dim)
    return _separate(roles, output, head_dim)


def _attention_roles(family: str) -> list[str]:
    return [role for role in FAMILIES[family].roles.values() if role.startswith("attn.")]


def _separate(roles: Mapping[str, LinearSite], output: LinearSite, head_dim: int) -> Attention | str:
    """Heads of an attention with one projection each for queries, keys and values."""
    query, key, value = (roles[f"attn.{letter}"] for letter in "qkv")
    rows = [linear.shape[0] for linear in (query, key, value)]
    n_heads, n_kv_heads = (size // head_dim if head_dim else 0 for size in rows[:2])
    if rows != [n_heads * head_dim, n_kv_heads * head_dim, n_kv_heads * head_dim]:
        return f"queries, keys and values of {rows} rows are not made of heads of {head_dim}"
    return _attention(
        (n_heads, n_kv_heads, head_dim),
        (Slot(query.name, "out", units(n_heads, head_dim)),),
        (
            Slot(key.name, "out", units(n_kv_heads, head_dim)),
            Slot(value.name, "out", units(n_kv_heads, head_dim)),
        ),
        output,
    )


def _fused(family: str, qkv: LinearSite, output: LinearSite, head_dim: int) -> Attention | str:
    """Heads of an attention whose queries, keys and values come from one projection."""
    rows, columns = qkv.shape[0], output.shape[1]
    n_heads = columns // head_dim if head_dim else 0
    n_kv_heads = (rows - columns) // (2 * head_dim) if head_dim else 0
    if rows != (n_heads + 2 * n_kv_heads) * head_dim or (n_kv_heads == 0) != (n_heads == 0):
        return f"{rows} rows for {columns} columns of output are not made of heads of {head_dim}"
    if n_kv_heads and n_heads % n_kv_heads:
        return f"its {n_heads} query heads do not divide among {n_kv_heads} key-value heads"
    layout = concatenated if family in _CONCATENATED else by_group
    queries, keys_values = layout(n_heads, n_kv_heads, head_dim)
    return _attention(
        (n_heads, n_kv_heads, head_dim),
        (Slot(qkv.name, "out", queries),),
        (Slot(qkv.name, "out", keys_values),),
        output,
    )


def _attention(
    sizes: tuple[int, int, int],
    queries: tuple[Slot, ...],
    keys_values: tuple[Slot, ...],
    output: LinearSite,
) -> Attention | str:
    """The attention, once its heads fit the columns of the output projection and each other."""
    n_heads, n_kv_heads, head_dim = sizes
    if output.shape[1] != n_heads * head_dim:
        return f"{n_heads} heads of {head_dim} do not fit the {output.shape[1]} columns of {output.name}"
    if n_kv_heads and n_heads % n_kv_heads:
        return f"its {n_heads} query heads do not divide among {n_kv_heads} key-value heads"
    queries = (*queries, Slot(output.name, "in", units(n_heads, head_dim)))
    return Attention(n_heads, n_kv_heads, head_dim, queries, keys_values, output.name)


def _find_feed_forward(site: BlockSite) -> FeedForward | str:
    """The feed-forward of the block, or why it is not recognised."""
    roles = {linear.role: linear for linear in site.all_linears}
    first = [roles[role] for role in ("mlp.gate", "mlp.up", "mlp.gate_up", "mlp.fc1") if role in roles]
    output = roles.get("mlp.down") or roles.get("mlp.fc2")
    if not first or output is None:
        traced = trace_feed_forward(site)
        return traced if isinstance(traced, str) else _feed_forward(traced.rows, traced.output)
    n_channels = output.shape[1]
    # A fused gate_up holds all rows of the gate, then all rows of the other.
    copies = {linear.name: 2 if linear.role == "mlp.gate_up" else 1 for linear in first}
    for linear in first:
        if linear.shape[0] != copies[linear.name] * n_channels:
            return f"{linear.name} has {linear.shape[0]} rows, {output.name} {n_channels} columns"
    rows = {linear.name: torch.arange(linear.shape[0]).view(copies[linear.name], -1).t() for linear in first}
    return _feed_forward(rows, output.name)


def _feed_forward(rows: Mapping[str, Tensor], output: str) -> FeedForward:
    """The feed-forward whose channels have these rows [channels, entries], and a column each of `output`."""
    n_channels = len(next(iter(rows.values())))
    channels = (Slot(name, "out", index) for name, index in rows.items())
    return FeedForward(n_channels, (*channels, Slot(output, "in", units(n_channels, 1))), output)


def below(site: BlockSite, name: str) -> str:
    """The name of a module below its block."""
    return name.removeprefix(f"{site.name}.")
