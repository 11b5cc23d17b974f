"""What config.json says of narrowed blocks, and the modelling file beside it; `narrow_widths` reads it."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from owl_compress.errors import RequestError
from owl_compress.forms import modeling_narrow
from owl_compress.forms.modeling_narrow import CONFIG_KEY, narrowed
from owl_compress.forms.narrowing import has_narrowed_blocks
from owl_compress.models.anatomy import BlockAnatomy, find_anatomy
from owl_compress.models.structure import find_structure

MODELLING_FILE = "modeling_narrow.py"
CLASS_PREFIX = "Narrow"
_AUTO_CLASS = "AutoModelForCausalLM"
_OVERRIDES, _ACCESS = "per_layer_config", "allow_global_per_layer_attribute_access"
# Each family calls them its own way; the first that a configuration has is meant.
HEADS_KEYS = ("num_attention_heads",)
KV_HEADS_KEYS = ("num_key_value_heads", "num_kv_heads")
INNER_KEYS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")


def check_savable(model: Any) -> None:
    """Refuse a model that no modelling file can describe.

    Raises:
        RequestError: its class is not one of transformers, or no block of it is narrowed.
    """
    stock_class(model)
    _widths_of(model)


def refuse_narrowed(model: Any, form: str) -> None:
    """Refuse to store a narrowed model in a form that does not say how wide each block is.

    Raises:
        RequestError: some block has lost heads or channels; `form` is what it can be stored in.
    """
    if has_narrowed_blocks(model):
        raise RequestError(f"this form does not say how wide each block is: save the model as {form}")


def stock_class(model: Any) -> type[Any]:
    """The class of transformers that `model` is an instance of, its narrowed subclass left aside.

    Raises:
        RequestError: the class comes from somewhere else.
    """
    for kind in type(model).__mro__:
        if kind.__module__.startswith("transformers.models.") and hasattr(transformers, kind.__name__):
            return kind
        if not kind.__name__.startswith(CLASS_PREFIX):
            break
    raise RequestError(
        f"{type(model).__name__} is not a class of transformers, so a narrowed model of it cannot be stored: "
        "remove structure only from architectures that transformers has"
    )


def text_config(config: Any) -> Any:
    """The configuration of the language part, which is `config` itself in a model of text alone."""
    return config.get_text_config(decoder=True)


def anatomies_of(model: nn.Module) -> list[BlockAnatomy]:
    """The anatomy of every block, as it is now."""
    return [find_anatomy(site) for site in find_structure(model).blocks]


def reader_of(model: Any) -> tuple[type[Any], Any]:
    """The class and a configuration of its own from which a reader builds `model`, narrowed or not."""
    config = deepcopy(model.config)
    if not has_narrowed_blocks(model):
        return type(model), config
    blocks, widths = _widths_of(model)
    setattr(config, CONFIG_KEY, {"blocks": blocks, "widths": widths})
    base: type = stock_class(model)
    return narrowed(base), config


def describe_narrowed(model: Any, folder: Path) -> None:
    """Add to the checkpoint that `save_pretrained` wrote into `folder` what makes it load as narrowed.

    config.json gets the widths, the class, and for other software transformers' own `per_layer_config`; the
    modelling file is put beside it. The model in memory is only read.

    Raises:
        RequestError: see `check_savable`.
    """
    base = stock_class(model).__name__
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    blocks, widths = _widths_of(model)
    config[CONFIG_KEY] = {"blocks": blocks, "widths": widths}
    config["architectures"] = [f"{CLASS_PREFIX}{base}"]
    config["auto_map"] = {_AUTO_CLASS: f"{Path(MODELLING_FILE).stem}.{CLASS_PREFIX}{base}"}
    text = text_config(model.config)
    in_file = config if text is model.config else config["text_config"]
    in_file |= _overrides(model, text)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / MODELLING_FILE).write_text(modelling_file(base), encoding="utf-8")


def modelling_file(base: str) -> str:
    """The text of the modelling file for narrowed models of the transformers class named `base`."""
    standalone = Path(modeling_narrow.__file__).read_text(encoding="utf-8")
    return f'''{standalone}

from transformers import {base}  # noqa: E402 - the lines from here on are this checkpoint's own


class {CLASS_PREFIX}{base}(NarrowMixin, {base}):
    """`{base}` with the widths of its config."""
'''


def _widths_of(model: nn.Module) -> tuple[str, list[Any]]:
    """Path of the list of blocks, and the widths of each block, None where nothing was removed."""
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and any(hasattr(block, "narrow_widths") for block in module):
            return path, [getattr(block, "narrow_widths", None) for block in module]
    raise RequestError("no block of this model is narrowed: save it as it is")


def _overrides(model: nn.Module, config: Any) -> dict[str, Any]:
    """`per_layer_config` under the configuration's own names, with what it needs to be read at all."""
    overrides: dict[str, dict[str, Any]] = {}
    head_dims = set()
    sites = find_structure(model).blocks
    digits = len(str(len(sites) - 1))  # JSON sorts its keys as text
    for index, site in enumerate(sites):
        widths = getattr(site.module, "narrow_widths", None)
        if widths is None:
            continue
        anatomy = find_anatomy(site)
        if anatomy.attention is not None:
            head_dims.add(anatomy.attention.head_dim)
        found = dict(widths_by_key(anatomy, config))
        # Readers divide by these numbers: a part that is gone is said to be skipped instead.
        values: dict[str, Any] = {key: n for key, n in found.items() if n and n != _plain(config, key)}
        if widths.get("empty"):
            values["skip"] = sorted(widths["empty"])
        if values:
            overrides[str(index).zfill(digits)] = values
    if not overrides:
        return {}
    described: dict[str, Any] = {_OVERRIDES: overrides, _ACCESS: True}
    # Without it readers would divide the hidden size by the number of heads that are left.
    if len(head_dims) == 1 and not hasattr(type(config), "head_dim") and not _plain(config, "head_dim"):
        described["head_dim"] = head_dims.pop()
    return described


def widths_by_key(anatomy: BlockAnatomy, config: Any) -> Iterator[tuple[str, int]]:
    """Head counts and inner width of a block, by the key that `config` has for each; none without a key."""
    wanted: list[tuple[tuple[str, ...], int]] = []
    if anatomy.attention is not None:
        wanted += [(HEADS_KEYS, anatomy.attention.n_heads), (KV_HEADS_KEYS, anatomy.attention.n_kv_heads)]
    if anatomy.mlp is not None:
        wanted += [(INNER_KEYS, anatomy.mlp.n_channels)]
    for candidates, value in wanted:
        key = config_key(config, candidates)
        if key is not None:
            yield key, value


def config_key(config: Any, candidates: tuple[str, ...]) -> str | None:
    """The name under which config.json holds the first of `candidates` that the configuration has."""
    names = (config.attribute_map.get(name, name) for name in candidates)
    return next((name for name in names if name in vars(config)), None)


def _plain(config: Any, key: str) -> Any:
    """The value of the model as a whole, read past transformers' warning about models like this one."""
    return vars(config).get(key)


def as_if_cut_in_memory_(model: Any) -> None:
    """Take off a loaded model what only its file needs; its blocks know their widths themselves.

    What is left is a model of the stock class with smaller blocks, as the backend makes it.
    """
    base = stock_class(model)
    model.__class__ = base
    configs = {id(model.config): model.config, id(text_config(model.config)): text_config(model.config)}
    for config in configs.values():
        config.per_layer_config = None
        for key in (CONFIG_KEY, "auto_map", _ACCESS):
            vars(config).pop(key, None)
    model.config.architectures = [base.__name__]
