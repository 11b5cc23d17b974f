"""What config.json says of narrowed blocks, written and read back, and the modelling file beside it."""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers
from pydantic import NonNegativeInt, PositiveInt, ValidationError
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from owl_compress.documents.document import Frozen
from owl_compress.errors import RequestError, first_problem
from owl_compress.forms import modeling_narrow
from owl_compress.forms.modeling_narrow import CONFIG_KEY, NarrowMixin, narrowed
from owl_compress.forms.narrowing import has_narrowed_blocks
from owl_compress.models.anatomy import BlockAnatomy, find_anatomy
from owl_compress.models.families import UNKNOWN_ROLE
from owl_compress.models.structure import LinearSite, find_structure

MODELLING_FILE = "modeling_narrow.py"
_PREFIX = "Narrow"
_MESSAGE_LENGTH = 160
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
        if not kind.__name__.startswith(_PREFIX):
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
    config["architectures"] = [f"{_PREFIX}{base}"]
    config["auto_map"] = {_AUTO_CLASS: f"{Path(MODELLING_FILE).stem}.{_PREFIX}{base}"}
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


class {_PREFIX}{base}(NarrowMixin, {base}):
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
    name = (getattr(config, "architectures", None) or [""])[0].removeprefix(_PREFIX)
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
    mask = torch.ones(
        1, 1, 4, 4, dtype=torch.bool, device="meta"
    )  # whole: to make one, numbers are looked at
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
