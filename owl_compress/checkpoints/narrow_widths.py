"""The widths that config.json states of narrowed blocks, read back and held against the stock model."""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
import transformers
from pydantic import NonNegativeInt, PositiveInt, ValidationError
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from owl_compress.checkpoints.narrow_config import CLASS_PREFIX
from owl_compress.documents.document import Frozen
from owl_compress.errors import RequestError, first_problem
from owl_compress.forms.modeling_narrow import CONFIG_KEY, NarrowMixin, narrowed
from owl_compress.models.families import UNKNOWN_ROLE
from owl_compress.models.structure import LinearSite

_MESSAGE_LENGTH = 160


class _AlibiHeads(Frozen):
    kept: tuple[NonNegativeInt, ...]
    of: PositiveInt


class _BlockWidths(Frozen):
    """See `modeling_narrow` for the meaning."""

    linears: Mapping[str, tuple[NonNegativeInt, NonNegativeInt]] = {}
    attributes: Mapping[str, bool | int | float | str | None] = {}
    config: Mapping[str, Mapping[str, int]] = {}
    alibi_heads: Mapping[str, _AlibiHeads] = {}
    empty: tuple[str, ...] = ()


class _Widths(Frozen):
    blocks: str
    widths: tuple[_BlockWidths | None, ...]


def is_narrow(described: Mapping[str, Any]) -> bool:
    """Whether a config.json states widths of single blocks."""
    return CONFIG_KEY in described


def narrowed_class(config: Any, source: str) -> type[Any]:
    """The class of ours that loads a checkpoint with this `config`, which states widths.

    Nothing of the checkpoint is run: its widths are data, checked here against the blocks of the stock model.

    Raises:
        RequestError: widths that are malformed or do not fit, or a class that transformers does not have.
    """
    wanted = getattr(config, CONFIG_KEY)
    name = (getattr(config, "architectures", None) or [""])[0].removeprefix(CLASS_PREFIX)
    if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() or not hasattr(transformers, name):
        raise RequestError(
            f"model {source!r}: transformers {transformers.__version__} has no causal model {name!r}, "
            "which its config.json names: upgrade transformers"
        )
    try:
        widths = _Widths.model_validate_json(json.dumps(wanted), strict=True)
    except ValidationError as error:
        raise _unfit(source, first_problem(error)) from error
    base: type = getattr(transformers, name)
    with torch.device("meta"):
        _check_fits(base(deepcopy(config)), widths, source)
    return narrowed(base)


def _check_fits(stock: nn.Module, widths: _Widths, source: str) -> None:
    """Refuse widths that name what the blocks lack, or that are larger than what they have."""
    try:
        blocks = stock.get_submodule(widths.blocks)
    except AttributeError as error:
        raise _unfit(source, f"there is no {widths.blocks!r} in the model") from error
    if not isinstance(blocks, nn.ModuleList) or len(blocks) != len(widths.widths):
        found = len(blocks) if isinstance(blocks, nn.ModuleList) else "no"
        raise _unfit(source, f"widths for {len(widths.widths)} blocks, {widths.blocks!r} has {found}")
    for index, (block, wanted) in enumerate(zip(blocks, widths.widths, strict=True)):
        if wanted is not None:
            problem = next(_misfits(block, wanted), None)
            if problem:
                raise _unfit(source, f"block {index}: {problem}")


def check_runs(narrow: type[Any], config: Any, source: str) -> None:
    """Refuse widths with which the blocks cannot run, such as head counts that do not go together.

    A text of a few tokens is tried on the meta device. Nothing is said where the stock model fails there too.

    Raises:
        RequestError: see above.
    """
    with torch.device("meta"):
        problem = _problem_of_a_forward(narrow(deepcopy(config)))
        if problem is None:
            return
        stock: Any = next(kind for kind in narrow.__mro__ if not issubclass(kind, NarrowMixin))
        if _problem_of_a_forward(stock(deepcopy(config))) is None:
            raise _unfit(source, f"the blocks cannot run with these widths ({problem})")


def _problem_of_a_forward(model: nn.Module) -> str | None:
    """What goes wrong with a text of four tokens on the meta device; None if nothing does."""
    ids = torch.zeros(1, 4, dtype=torch.long, device="meta")
    # Whole: to make one, numbers are looked at.
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool, device="meta")
    try:
        with torch.no_grad():
            model.eval()(input_ids=ids, attention_mask=mask, use_cache=False)
    except Exception as error:  # noqa: BLE001 - a forward fails in many ways
        return " ".join(str(error).split())[:_MESSAGE_LENGTH]
    return None


def _misfits(block: nn.Module, widths: _BlockWidths) -> Iterator[str]:
    modules = dict(block.named_modules())
    for name, shape in widths.linears.items():
        linear = modules.get(name)
        if not isinstance(linear, nn.Linear | Conv1D):
            yield f"{name!r} is no linear"
            continue
        largest = LinearSite(name, UNKNOWN_ROLE, linear).shape
        if shape[0] > largest[0] or shape[1] > largest[1]:
            yield f"{name!r} is {shape}, larger than the {largest} of the model"
    for path, count in widths.attributes.items():
        owner, _, name = path.rpartition(".")
        yield from _no_count(path, count, getattr(modules.get(owner), name, None))
    for path in widths.empty:
        linears = _linears_below(modules, path)
        full = [name for name in linears if 0 not in widths.linears.get(name, (1,))]
        if full or (path in modules and not linears):
            yield f"{path!r} is said to be empty, and {full[0] if full else path!r} is not"
    for path in (*widths.config, *widths.alibi_heads, *widths.empty):
        if path not in modules or (path in widths.config and not hasattr(modules[path], "config")):
            yield f"{path!r} is no part of the block that could have it"
    for path, counts in widths.config.items():
        for key, count in counts.items():
            most = getattr(modules[path].config, key, None)
            yield from _no_count(f"{path}.config.{key}", count, most)
    for heads in widths.alibi_heads.values():
        if any(head >= heads.of for head in heads.kept):
            yield f"alibi_heads keeps head {max(heads.kept)} of {heads.of}"


def _no_count(path: str, count: object, most: object) -> Iterator[str]:
    """What is wrong with a count of heads that is to take the place of `most`: a cut never adds any."""
    if not isinstance(most, int) or isinstance(most, bool):
        yield f"{path!r} is no number of the block"
    elif not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= most:
        yield f"{path!r} is {count!r}, and must be from 1 to the {most} of the model"


def _linears_below(modules: Mapping[str, nn.Module], path: str) -> list[str]:
    return [
        name
        for name, module in modules.items()
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(f"{path}.")
    ]


def _unfit(source: str, problem: str) -> RequestError:
    return RequestError(
        f"model {source!r}: {CONFIG_KEY} in config.json: {problem}: "
        "the checkpoint is broken or its config is another model's"
    )
