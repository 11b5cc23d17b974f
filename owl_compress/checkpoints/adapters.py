"""Adapters (LoRA and its kin): folders that hold one, alone or beside a whole model."""

import json
from pathlib import Path

from transformers.utils import ADAPTER_CONFIG_NAME, find_adapter_config_file

from owl_compress.errors import RequestError

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
