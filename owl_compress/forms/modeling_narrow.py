"""Models whose blocks have widths of their own: fewer heads and feed-forward channels than the config says.

This file stands alone: it needs torch and transformers and nothing else, because a copy of it lies in
saved checkpoints as their modelling file. A block's widths are plain JSON::

    {"linears": {"self_attn.q_proj": [out, in], ...},            every linear of the block
     "attributes": {"self_attn.num_key_value_groups": 2, ...},   what its forward reads
     "config": {"self_attn": {"num_attention_heads": 6}},        what its forward reads off its config
     "alibi_heads": {"self_attention": {"kept": [0, 2], "of": 4}},
     "empty": ["self_attn"]}                                     sublayers that have nothing left

Names are dotted paths below the block; keys that do not apply are absent.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.pytorch_utils import Conv1D

CONFIG_KEY = "owl_compress_widths"
ALIBI_NAMES = frozenset({"alibi", "position_bias"})
"""Arguments of an attention that hold something for each of its heads."""
_CACHE_NAMES = ("cache", "past_key_values", "layer_past")  # the first since transformers 5.24


def set_widths_(block: nn.Module, widths: Mapping[str, Any]) -> None:
    """Give `block` the shapes and head counts of `widths`, and keep them as `block.narrow_widths`.

    A linear that has its shape already keeps its parameters; any other gets new ones without values, of the
    same dtype and on the same device.

    Raises:
        AttributeError: `widths` names a module that the block does not have.
    """
    for path, (rows, columns) in widths.get("linears", {}).items():
        _resize_(block.get_submodule(path), rows, columns)
    for path, value in widths.get("attributes", {}).items():
        owner, _, name = path.rpartition(".")
        setattr(block.get_submodule(owner), name, value)
    for path, values in widths.get("config", {}).items():
        module = block.get_submodule(path)
        vars(module)["config"] = _ConfigView(getattr(module.config, "narrow_shared", module.config), values)
    for path, heads in widths.get("alibi_heads", {}).items():
        _slice_alibi_(block.get_submodule(path), heads["kept"], heads["of"])
    for path in widths.get("empty", ()):
        contribute_bias_(block.get_submodule(path))
    vars(block)["narrow_widths"] = widths


class NarrowMixin:
    """The stock model of a config, its blocks narrowed to `config.owl_compress_widths`.

    The value of that key is `{"blocks": path of the list of blocks, "widths": [one per block, or null]}`.
    """

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        _share_renamings(cls)

    def __init__(self, config: Any, *positional: Any, **named: Any) -> None:
        super().__init__(config, *positional, **named)  # type: ignore[call-arg]
        wanted = getattr(config, CONFIG_KEY, None)
        if wanted is None:
            return
        blocks = self.get_submodule(wanted["blocks"])  # type: ignore[attr-defined]
        if len(blocks) != len(wanted["widths"]):
            raise ValueError(
                f"{CONFIG_KEY} has widths for {len(wanted['widths'])} blocks, the model has {len(blocks)}"
            )
        for block, widths in zip(blocks, wanted["widths"], strict=True):
            if widths is not None:
                before = set(block.parameters())
                set_widths_(block, widths)
                self._fill_(module for module in block.modules() if not before.issuperset(_own(module)))

    def _fill_(self, modules: Any) -> None:
        """Random values for parameters that have none yet: whoever loads a checkpoint replaces them."""
        for module in modules:
            self._init_weights(module)  # type: ignore[attr-defined]


@cache
def narrowed(base: type) -> type:
    """The class `Narrow<Base>`: `base` with the widths of its config. The same one at every call."""
    return type(f"Narrow{base.__name__}", (NarrowMixin, base), {"__module__": __name__})


def _share_renamings(narrow: type) -> None:
    """Let `narrow` read and write its weights under the names that its stock class has for them in files.

    transformers keeps these (GPT-NeoX: `embed_out` for `lm_head`) by the name of the class or of its family,
    and withholds them from classes that are not its own unless they are registered.
    """
    stock: Any = next(kind for kind in narrow.__mro__ if not issubclass(kind, NarrowMixin))
    family = getattr(getattr(stock, "config_class", None), "model_type", None)
    for name in (stock.__name__, family):
        renamings = get_checkpoint_conversion_mapping(name)
        if renamings is not None:
            register_checkpoint_conversion_mapping(narrow.__name__, renamings, overwrite=True)
            return


def _own(module: nn.Module) -> set[nn.Parameter]:
    return set(module.parameters(recurse=False))


def _resize_(linear: nn.Module, rows: int, columns: int) -> None:
    is_conv = isinstance(linear, Conv1D)  # it stores [in, out]
    shapes = {"weight": (columns, rows) if is_conv else (rows, columns), "bias": (rows,)}
    for name, shape in shapes.items():
        old = getattr(linear, name, None)
        if old is not None and tuple(old.shape) != shape:
            empty = torch.empty(shape, dtype=old.dtype, device=old.device)
            setattr(linear, name, nn.Parameter(empty, requires_grad=old.requires_grad))
    names = ("nf", "nx") if is_conv else ("out_features", "in_features")
    setattr(linear, names[0], rows)
    setattr(linear, names[1], columns)


class _ConfigView:
    """A config with some values of its own; the others are read off the shared one at the time of asking.

    The model's switches, such as the attention implementation, stay shared that way; a copy would not follow.
    """

    def __init__(self, shared: Any, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values, narrow_shared=shared)

    def __getattr__(self, name: str) -> Any:
        # copy and pickle look for special methods before the instance has anything to forward to
        if name.startswith("__") or "narrow_shared" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["narrow_shared"], name)


def _slice_alibi_(attention: nn.Module, kept: Sequence[int], n_heads: int) -> None:
    if not hasattr(attention, "narrow_alibi"):  # the hook reads it anew each time: one hook is enough
        attention.register_forward_pre_hook(_keep_alibi_heads, with_kwargs=True)
    vars(attention)["narrow_alibi"] = (tuple(kept), n_heads)


def _keep_alibi_heads(
    attention: Any, positional: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Leave the kept heads' slopes in `alibi` or `position_bias`, and in a mask that holds them (Falcon)."""
    kept, n_heads = attention.narrow_alibi
    named = dict(named)
    alibi, mask, bias = named.get("alibi"), named.get("attention_mask"), named.get("position_bias")
    if alibi is not None and alibi.ndim == 3:
        # [batch * heads, 1, keys] -> [batch, heads, 1, keys] -> [batch * kept, 1, keys]
        named["alibi"] = _select(alibi.unflatten(0, (-1, n_heads)), kept).flatten(0, 1)
    elif alibi is not None:
        named["alibi"] = _select(alibi, kept)
    if bias is not None:
        # [heads, queries, keys] -> [kept, queries, keys]
        named["position_bias"] = _select(bias[None], kept)[0] if bias.ndim == 3 else _select(bias, kept)
    if mask is not None and n_heads > 1 and mask.ndim == 4 and mask.shape[1] == n_heads:
        named["attention_mask"] = _select(mask, kept)
    return positional, named


def _select(tensor: Tensor, kept: tuple[int, ...]) -> Tensor:
    """`tensor[:, kept]`, without an index that would have to be sent to the device at each call."""
    return torch.stack([tensor[:, head] for head in kept], dim=1)


def contribute_bias_(module: nn.Module) -> None:
    """Make the forward of an attention or feed-forward that of one that has nothing left."""
    vars(module)["forward"] = partial(_contribute_bias, module)  # unlike a method it can be pickled


def _contribute_bias(self: Any, *positional: Any, **named: Any) -> Any:
    """The forward of an attention without heads, or of a feed-forward without channels.

    What is left of the output projection is its bias. The cache still has to count the tokens, since a model
    asks any of its layers how long the text is: a single zero stands for each of them.
    """
    signature = inspect.signature(type(self).forward)
    given = signature.bind(self, *positional, **named).arguments
    hidden = next(value for name, value in given.items() if name != "self")  # [batch, tokens, hidden]
    output = torch.zeros_like(hidden) + _output_bias(self, hidden)
    if "residual" in given:  # BLOOM adds it inside
        output = output + given["residual"]
    if not any(name in signature.parameters for name in _CACHE_NAMES):
        return output
    cached = next((given[name] for name in _CACHE_NAMES if given.get(name) is not None), None)
    if cached is not None:
        token = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
        cached = getattr(cached, "self_attention_cache", cached)
        cached.update(token, token, self.layer_idx)
    return output, None


def _output_bias(module: nn.Module, hidden: Tensor) -> Tensor:
    """The bias of the linear that no channel reaches any more; zero if it has none."""
    for linear in module.modules():
        columns = getattr(linear, "nx" if isinstance(linear, Conv1D) else "in_features", None)
        bias = getattr(linear, "bias", None)
        if columns == 0 and bias is not None:
            return cast("Tensor", bias)
    return hidden.new_zeros(())
