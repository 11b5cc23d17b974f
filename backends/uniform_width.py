"""Whether a stock model can have the widths that all blocks are to get: told before any block is cut."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from owl_compress.backends.block_widths import BlockWidths
from owl_compress.checkpoints.stock import check_stock
from owl_compress.errors import RequestError
from owl_compress.forms.narrowing import KeptUnits
from owl_compress.models.anatomy import Attention, find_anatomy
from owl_compress.models.structure import ModelStructure


def check_no_part_is_gone(structure: ModelStructure) -> None:
    """Refuse a model that has lost a part of a block before, as no stock one has.

    Raises:
        RequestError: see above, naming a linear of it.
    """
    gone = next((linear.name for site in structure.blocks for linear in site.emptied), None)
    if gone is not None:
        raise RequestError(
            "--uniform-width makes a stock model, whose blocks have all their parts, and "
            f"{gone} lost its last weight before: drop --uniform-width"
        )


def check_widths(model: Any, structure: ModelStructure, widths: Mapping[str, object]) -> None:
    """Refuse `widths`, by block, that the stock model of the configuration cannot have.

    Raises:
        RequestError: see `to_stock_`.
    """
    check_stock(model, [_first_units(widths.get(name), attention) for name, attention in _parts(structure)])


def check_any_widths(model: Any, structure: ModelStructure, likely: Mapping[str, object]) -> None:
    """Refuse a model of which no stock one has fewer heads, or fewer channels, where `likely` has.

    How many heads stay is known for certain once the model was surveyed. Numbers that only the configuration
    refuses, because they do not divide another, may turn out otherwise: one head of each kind always divides.

    Raises:
        RequestError: neither `likely` nor a single head will do.
    """
    try:
        check_widths(model, structure, likely)
    except RequestError:
        attentions = dict(_parts(structure))
        fewest = {name: _with_one_head(widths, attentions[name]) for name, widths in likely.items()}
        check_widths(model, structure, fewest)


def _parts(structure: ModelStructure) -> list[tuple[str, Attention | None]]:
    return [(site.name, find_anatomy(site).attention) for site in structure.blocks]


def _with_one_head(widths: object, attention: Attention | None) -> object:
    """The same channels with one head of each kind, where any head goes."""
    if not isinstance(widths, BlockWidths) or widths.level is None or attention is None:
        return widths
    level = widths.level
    if level.kv_heads * level.queries_per_group == attention.n_heads:
        return widths
    return replace(widths, level=replace(level, kv_heads=1, queries_per_group=1))


def _first_units(widths: object, attention: Attention | None) -> KeptUnits:
    """As many units as `widths` says, the first of each kind; which ones makes no difference to a shape."""
    if not isinstance(widths, BlockWidths):
        return KeptUnits()
    channels = None if widths.channels is None else torch.arange(widths.channels)
    if widths.level is None or attention is None:
        return KeptUnits(channels)
    kv_heads = torch.arange(widths.level.kv_heads)
    queries = torch.arange(widths.level.queries_per_group)
    # [kv_heads, 1] + [queries per group] -> [heads]
    heads = (kv_heads[:, None] * attention.n_queries_per_group + queries).flatten()
    return KeptUnits(channels, heads, kv_heads)
