"""Adapters (LoRA and its kin): folders that hold one, alone or beside a whole model."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.utils import ADAPTER_CONFIG_NAME, find_adapter_config_file

from owl_compress.checkpoints.door import with_adapter
from owl_compress.documents.outputs import ADAPTER_FOLDER
from owl_compress.errors import RequestError
from owl_compress.models.adapters import peft_kept_quiet

_MERGE = (
    "merge it into the weights first (peft: PeftModel.from_pretrained(base, adapter).merge_and_unload(), "
    "then save_pretrained)"
)


def check_no_adapter(where: str, *, is_whole: bool = True, revision: str | None = None) -> None:
    """Refuse a checkpoint with an adapter, which is part of the model or not as peft is installed or not.

    Args:
        where: folder or hub id.
        is_whole: whether a whole model lies beside it.
        revision: of a hub id.

    Raises:
        RequestError: there is one; the base model it names is passed on.
    """
    found = find_adapter_config_file(where, revision=revision)
    if found is None:
        return
    base = _base_of(Path(found))
    if is_whole:
        raise RequestError(
            f"model {where!r} has an adapter beside its weights ({ADAPTER_CONFIG_NAME}), which is no part "
            f"of them: {_MERGE}, or move {ADAPTER_CONFIG_NAME} away to compress the model without it"
        )
    raise RequestError(
        f"{where} holds an adapter alone ({ADAPTER_CONFIG_NAME}) and no model{base}: {_MERGE}, and name the "
        "folder of the result"
    )


def _base_of(path: Path) -> str:
    """The base model that an adapter names, in words."""
    try:
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
    return f"; its base is {base!r}" if isinstance(base, str) and base else ""


def own_adapter(where: str) -> Path | None:
    """The adapter that a recovery of ours left beside the weights in the folder `where`; None for none.

    Raises:
        RequestError: there is one, and peft is missing, which reads it.
    """
    folder = Path(where) / ADAPTER_FOLDER
    if not (folder / ADAPTER_CONFIG_NAME).is_file():
        return None
    if importlib.util.find_spec("peft") is None:
        raise RequestError(
            f"{where} has an adapter beside its weights, which the package peft reads: pip install "
            "'owl-compress[recover]'"
        )
    return folder


def merge_adapter(model: Any, folder: Path) -> Any:
    """`model` with the adapter in `folder` added to its weights, in memory alone.

    Raises:
        RequestError: the adapter cannot be read, or is another model's.
    """
    try:
        with peft_kept_quiet():
            return with_adapter(model, folder).merge_and_unload()
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"the adapter in {folder} cannot be put on the model: {reason}") from error
