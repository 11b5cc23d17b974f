"""Cutting heads and channels out of a block in place: smaller dense matrices, nothing masked."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from owl_compress.errors import RequestError
from owl_compress.forms.modeling_narrow import ALIBI_NAMES, contribute_bias_, set_widths_
from owl_compress.memory import page_out
from owl_compress.models.anatomy import Attention, Axis, BlockAnatomy, FeedForward, Slot, below
from owl_compress.models.families import FAMILIES
from owl_compress.models.probing import Rows, computes_the_same, probe
from owl_compress.models.removable import Count, Counted
from owl_compress.models.structure import BlockSite

# What the forward pass of an attention reads besides its tensors, by family; of others the anatomy says it.
_GROUPS: Mapping[str, Count] = {"num_key_value_groups": "queries_per_group"}
_HEADS: Mapping[str, Count] = {"num_heads": "heads"}
_HEAD_COUNTS: Mapping[str, Mapping[str, Count]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gemma3"), _GROUPS),
    "phi3": {**_GROUPS, "num_key_value_heads": "kv_heads"},
    "opt": _HEADS,
    "gpt2": {**_HEADS, "split_size": "width"},
    "gpt_neox": {},
    "bloom": _HEADS,
    "falcon": {**_HEADS, "num_kv_heads": "kv_heads"},
}


@dataclass(frozen=True)
class KeptUnits:
    """The units that stay, int64 indices in rising order; None leaves the part as it is.

    `heads` and `kv_heads` go together: every kept key-value head keeps the same number of query heads.
    """

    channels: Tensor | None = None
    heads: Tensor | None = None
    kv_heads: Tensor | None = None


def has_narrowed_blocks(model: nn.Module) -> bool:
    """Whether any block of `model` has lost heads or channels."""
    return any(hasattr(module, "narrow_widths") for module in model.modules())


def keep_units_(site: BlockSite, anatomy: BlockAnatomy, kept: KeptUnits) -> None:
    """Remove everything but `kept` from the block, in place: weights, biases, and the head counts it uses.

    Weights are copied one linear at a time. The bias of an output projection stays, and is all that a part
    without any unit contributes. A block of which something was removed holds its widths as `narrow_widths`.

    Raises:
        ValueError: `kept` names a part that was not recognised or units that the part does not have, or does
            not keep the same number of query heads for every key-value head, or `anatomy` is out of date.
        RequestError: all heads of an attention that cannot count its tokens without them.
    """
    cuts = [cut for cut in _cuts(site, anatomy, kept) if cut.entries.numel()]
    if not cuts:
        return
    widths = _changes(site, anatomy, kept)
    for linear in site.linears:
        for axis in ("out", "in"):
            entries = [cut.entries for cut in cuts if (cut.linear, cut.axis) == (linear.name, axis)]
            if entries:
                _cut_(linear.module, axis, torch.cat(entries))
    shapes = {below(site, linear.name): list(linear.shape) for linear in site.all_linears}
    set_widths_(site.module, {"linears": shapes} | widths)


def narrow_again_(block: nn.Module, widths: Mapping[str, Any]) -> None:
    """Give a block the `widths` that it was cut to once; weights that had others are left without values."""
    before = {name: parameter.data for name, parameter in block.named_parameters()}
    set_widths_(block, widths)
    for name, parameter in block.named_parameters():
        if parameter.data_ptr() != before[name].data_ptr():
            _let_go(before[name])


@dataclass(frozen=True)
class _Cut:
    """Rows (axis "out") or columns ("in") that go from one linear."""

    linear: str
    axis: Axis
    entries: Tensor


def _cuts(site: BlockSite, anatomy: BlockAnatomy, kept: KeptUnits) -> Iterator[_Cut]:
    """What goes from every slot of the parts that `kept` speaks of."""
    if kept.channels is not None:
        mlp = anatomy.mlp
        if mlp is None:
            raise ValueError(f"{site.name} has no feed-forward whose channels are known")
        _check_current(site, mlp, mlp.n_channels)
        yield from _removed(mlp.channels, kept.channels, mlp.n_channels)
    if kept.heads is None and kept.kv_heads is None:
        return
    attention = anatomy.attention
    if attention is None:
        raise ValueError(f"{site.name} has no attention whose heads are known")
    if kept.heads is None or kept.kv_heads is None:
        raise ValueError(f"{site.name}: heads and kv_heads are kept together or not at all")
    _check_current(site, attention, attention.n_heads * attention.head_dim)
    yield from _removed(attention.queries, kept.heads, attention.n_heads)
    yield from _removed(attention.keys_values, kept.kv_heads, attention.n_kv_heads)
    _check_groups(attention, kept.heads.cpu(), kept.kv_heads.cpu())


def _check_current(site: BlockSite, part: Attention | FeedForward, columns: int) -> None:
    output = next((linear for linear in site.all_linears if linear.name == part.output), None)
    if output is None or output.shape[1] != columns:
        raise ValueError(f"this anatomy is not that of {site.name} as it is now")


def _removed(slots: Sequence[Slot], kept: Tensor, n_units: int) -> Iterator[_Cut]:
    if kept.dtype != torch.int64 or kept.ndim != 1:
        raise ValueError(f"kept units are int64 [units], not {kept.dtype} {list(kept.shape)}")
    if bool((kept.diff() <= 0).any()):
        raise ValueError(f"kept units must be in rising order, each once, not {kept.tolist()}")
    if kept.numel() and not 0 <= int(kept[0]) <= int(kept[-1]) < n_units:
        raise ValueError(f"kept units {int(kept[0])} to {int(kept[-1])} lie outside the {n_units} there are")
    gone = torch.ones(n_units, dtype=torch.bool)
    gone[kept.cpu()] = False
    for slot in slots:
        yield _Cut(slot.linear, slot.axis, slot.index[gone].flatten())


def _check_groups(attention: Attention, heads: Tensor, kv_heads: Tensor) -> None:
    """Every kept key-value head keeps the same number of readers, at least one, and no other has any."""
    readers = [0] * attention.n_kv_heads
    for head in heads.tolist():
        readers[head // attention.n_queries_per_group] += 1
    stay = set(kv_heads.tolist())
    counts = {n for kv_head, n in enumerate(readers) if kv_head in stay}
    strays = sum(n for kv_head, n in enumerate(readers) if kv_head not in stay)
    if len(counts) > 1 or 0 in counts or strays:
        raise ValueError(
            f"of {len(readers)} key-value heads {sorted(stay)} are kept; each must keep the same number of "
            f"query heads, at least one, and the others none, not {readers}"
        )


def _cut_(module: nn.Module, axis: Axis, removed: Tensor) -> None:
    """Cut rows (axis "out", with their biases) or columns ("in") out of one linear."""
    import torch_pruning  # noqa: PLC0415 - only those who cut need it

    wants_gradient = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    whole = module.get_parameter("weight").data
    with torch.no_grad():
        if not isinstance(module, nn.Linear):
            _cut_conv_(module, axis, removed)
        elif axis == "out":
            torch_pruning.prune_linear_out_channels(module, removed.tolist())
        else:
            torch_pruning.prune_linear_in_channels(module, removed.tolist())
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(wants_gradient[name])
    _let_go(whole)


def _let_go(weight: Tensor) -> None:
    """Free the memory of a weight that was replaced and lies in a mapped file, as weights of safetensors do.

    The pages of a file would else stay until the last of its tensors is gone.
    """
    if weight.device.type == "cpu":
        page_out(weight.data_ptr(), weight.nbytes)


def _cut_conv_(module: nn.Module, axis: Axis, removed: Tensor) -> None:
    """The same for a Conv1D, whose weight is stored as [in, out]."""
    dimension = 1 if axis == "out" else 0
    weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
    stays = torch.ones(weight.shape[dimension], dtype=torch.bool)
    stays[removed] = False
    index = stays.nonzero().flatten().to(weight.device)
    vars(module)["nf" if axis == "out" else "nx"] = len(index)
    module.register_parameter("weight", nn.Parameter(weight.index_select(dimension, index)))
    if axis == "out":
        module.register_parameter("bias", nn.Parameter(bias.index_select(0, index)))


def _changes(site: BlockSite, anatomy: BlockAnatomy, kept: KeptUnits) -> dict[str, Any]:
    """The widths of the block without its shapes: those that it has already, and what the cut changes."""
    widths = dict(getattr(site.module, "narrow_widths", {}))
    widths.pop("linears", None)
    empty = set(widths.get("empty", ()))
    if anatomy.mlp is not None and kept.channels is not None and kept.channels.numel() == 0:
        path = below(site, anatomy.mlp.output)
        if isinstance(site.module.get_submodule(path), Conv1D):  # it cannot run without inputs
            empty.add(path.rpartition(".")[0])
    attention = anatomy.attention
    if attention is not None and kept.heads is not None and kept.heads.numel() < attention.n_heads:
        path = _path_of(site, attention)
        if kept.heads.numel() == 0:
            _check_may_go_whole(site, path, attention)
            empty.add(path)
        else:
            widths |= _head_counts(site, path, attention, kept)
    return widths | ({"empty": sorted(empty)} if empty else {})


def _head_counts(site: BlockSite, path: str, attention: Attention, kept: KeptUnits) -> dict[str, Any]:
    """Head counts of the attention at `path`, in the form of `set_widths_`."""
    heads, kv_heads = kept.heads, kept.kv_heads
    if heads is None or kv_heads is None:
        return {}
    sizes = heads.numel(), kv_heads.numel()
    counts: dict[str, Any] = {}
    counted = attention.counted or _counted(site, path)
    if counted.attributes:
        counts["attributes"] = {
            ".".join(filter(None, (path, name))): attention.count(
                what, *sizes
            )  # the block itself has no path
            for name, what in counted.attributes.items()
        }
    if counted.config:
        counts["config"] = {
            path: {key: attention.count(what, *sizes) for key, what in counted.config.items()}
        }
    if _has_alibi(site, path):
        before = getattr(site.module, "narrow_widths", {}).get("alibi_heads", {}).get(path)
        original = before or {"kept": list(range(attention.n_heads)), "of": attention.n_heads}
        slopes = [original["kept"][head] for head in heads.tolist()]
        counts["alibi_heads"] = {path: {"kept": slopes, "of": original["of"]}}
    return counts


def _path_of(site: BlockSite, attention: Attention) -> str:
    """The path of the attention below its block."""
    if attention.counted is not None:
        return attention.counted.module
    return below(site, attention.output).rpartition(".")[0]


def _counted(site: BlockSite, path: str) -> Counted:
    """What the forward pass of an attention of a family in the table reads."""
    config: dict[str, Count] = {"num_attention_heads": "heads"} if site.family == "phi3" else {}
    return Counted(path, _HEAD_COUNTS[site.family], config)


def _has_alibi(site: BlockSite, path: str) -> bool:
    """Whether the attention is handed something for each of its heads."""
    module = site.module.get_submodule(path)
    if site.family == "falcon":
        return bool(getattr(getattr(module, "config", None), "alibi", False))
    return not ALIBI_NAMES.isdisjoint(inspect.signature(module.forward).parameters)


def _check_may_go_whole(site: BlockSite, path: str, attention: Attention) -> None:
    """Refuse to empty an attention that is missed by more than the sum of its outputs."""
    module = site.module.get_submodule(path)
    if getattr(module, "layer_idx", None) is None:
        raise RequestError(
            f"the attention of {site.name} (family {site.family!r}) has no place in the cache of its own and "
            "cannot go whole; keep at least one key-value head"
        )
    if site.family in FAMILIES:
        return
    tried, output = probe(module), attention.output.removeprefix(f"{site.name}.{path}.")
    columns = torch.arange(attention.n_heads * attention.head_dim)
    if tried is None or not computes_the_same(tried, output, [Rows(output, "in", columns)], contribute_bias_):
        raise RequestError(
            f"the attention of {site.name} (family {site.family!r}) returns more than its output projection "
            "and cannot go whole; keep at least one key-value head"
        )
