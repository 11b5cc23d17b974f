"""Narrowed models whose blocks all have one width, turned into ordinary ones that need nothing of ours."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from owl_compress.checkpoints.narrow_config import (
    anatomies_of,
    as_if_cut_in_memory_,
    reader_of,
    stock_class,
    text_config,
    widths_by_key,
)
from owl_compress.errors import RequestError
from owl_compress.forms.modeling_narrow import CONFIG_KEY
from owl_compress.forms.narrowing import KeptUnits, keep_units_
from owl_compress.models.anatomy import BlockAnatomy
from owl_compress.models.structure import find_structure


def to_stock_(model: Any) -> None:
    """Turn a narrowed model whose blocks all have the same widths into an ordinary one, in place.

    Its configuration gets these widths as its own, so that it saves as a checkpoint that needs nothing of
    ours. A model that is not narrowed stays as it is. Nothing is changed if it is refused.

    Raises:
        RequestError: blocks of different widths, or widths that the stock model of the configuration cannot
            have.
    """
    blocks = [site.module for site in find_structure(model).blocks]
    if not any(hasattr(block, "narrow_widths") for block in blocks):
        return
    values = _common_widths(anatomies_of(model), text_config(model.config))
    _check_is_stock(model, values)
    as_if_cut_in_memory_(model)
    for key, value in values.items():
        setattr(text_config(model.config), key, value)
    for block in blocks:
        vars(block).pop("narrow_widths", None)
        for module in block.modules():
            shared = getattr(getattr(module, "config", None), "narrow_shared", None)
            if shared is not None:
                vars(module)["config"] = shared


def check_stock(model: Any, kept: Sequence[KeptUnits]) -> None:
    """Refuse what `to_stock_` would refuse once only the units `kept` of each block are there.

    They are cut from a copy without memory; `model` stays as it is.

    Raises:
        RequestError: see `to_stock_`.
    """
    kind, config = reader_of(model)
    with torch.device("meta"):
        rehearsed = kind(config)
    anatomies = anatomies_of(model)
    for site, anatomy, units in zip(find_structure(rehearsed).blocks, anatomies, kept, strict=True):
        keep_units_(site, anatomy, units)
    left = [_narrowed(anatomy, units) for anatomy, units in zip(anatomies, kept, strict=True)]
    _check_is_stock(rehearsed, _common_widths(left, text_config(config)))


def _narrowed(anatomy: BlockAnatomy, kept: KeptUnits) -> BlockAnatomy:
    """The numbers of a block of which `kept` is left."""
    attention, mlp = anatomy.attention, anatomy.mlp
    if attention is not None and kept.heads is not None and kept.kv_heads is not None:
        attention = replace(attention, n_heads=len(kept.heads), n_kv_heads=len(kept.kv_heads))
    if mlp is not None and kept.channels is not None:
        mlp = replace(mlp, n_channels=len(kept.channels))
    return replace(anatomy, attention=attention, mlp=mlp)


def _check_is_stock(model: Any, values: dict[str, int]) -> None:
    """Refuse a model that is not the stock one of a configuration with `values`."""
    problem = next(_differences(model, _stock_with(model, values)), None)
    if problem:
        raise _no_stock(f"the configuration of {model.config.model_type} models has no key for {problem}")


def _common_widths(anatomies: Sequence[BlockAnatomy], config: Any) -> dict[str, int]:
    """The widths that all blocks share, by the configuration's keys, with the head size if it has a place."""
    first, *others = [dict(widths_by_key(anatomy, config)) for anatomy in anatomies]
    for anatomy, widths in zip(anatomies[1:], others, strict=True):
        if widths != first:
            raise _no_stock(
                f"block {anatomy.block} has {_shown(widths)}, block {anatomies[0].block} {_shown(first)}"
            )
    if 0 in first.values():
        raise _no_stock(f"a sublayer is gone from every block ({_shown(first)})")
    attention = anatomies[0].attention
    if attention is not None and not hasattr(type(config), "head_dim"):
        first["head_dim"] = attention.head_dim
    return first


def _stock_with(model: Any, values: dict[str, int]) -> Any:
    """The stock model, without memory, of the configuration that has `values` for all blocks."""
    described = model.config.to_dict()
    text = described if text_config(model.config) is model.config else described["text_config"]
    for key in (CONFIG_KEY, "per_layer_config"):
        described.pop(key, None)
        text.pop(key, None)
    text |= values
    try:
        with torch.device("meta"):
            return stock_class(model)(type(model.config).from_dict(described))
    except (ValueError, RuntimeError, StrictDataclassError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise _no_stock(f"transformers takes no {_shown(values)}: {reason}") from error


def _differences(model: Any, stock: Any) -> Iterator[str]:
    """What the narrowed model has and the stock one does not: a shape, or a number that a forward reads."""
    shapes = {name: tuple(tensor.shape) for name, tensor in stock.state_dict().items()}
    for name, tensor in model.state_dict().items():
        if tuple(tensor.shape) != shapes.get(name):
            yield f"{name} of shape {tuple(tensor.shape)}"
    pairs = zip(find_structure(model).blocks, find_structure(stock).blocks, strict=True)
    for site, its_stock in pairs:
        widths = getattr(site.module, "narrow_widths", {})
        for part in (*widths.get("empty", ()), *widths.get("alibi_heads", {})):
            kind = (
                "a sublayer that is gone" if part in widths.get("empty", ()) else "the biases of kept heads"
            )
            yield f"{kind} ({site.name}.{part})"
        read = dict(widths.get("attributes", {}))
        for part, values in widths.get("config", {}).items():
            read |= {f"{part}.config.{key}": value for key, value in values.items()}
        for path, value in read.items():
            if attrgetter(path)(its_stock.module) != value:
                yield f"{site.name}.{path} = {value}"


def _shown(values: dict[str, int]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _no_stock(reason: str) -> RequestError:
    return RequestError(
        f"the model cannot be stored as a stock checkpoint of uniform width: {reason}: leave --uniform-width "
        "away, or compress with --parts mlp"
    )
