"""What an outcome depends on, in the words of whoever asked for it: the same things give the same bits."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import torch

from owl_compress.checkpoints.loading import LoadedModel, locate
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.option_names import option_name
from owl_compress.documents.versions import versions
from owl_compress.errors import RequestError

_SEEN_ELSEWHERE = frozenset({
    "model", "calib", "data", "damage-data", "plan", "profile", "cost-table", "offload", "activations",
})  # fmt: skip
"""Options that name files, which are looked at themselves, or that change nothing of what comes out."""

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "config.json")


def facts(
    loaded: LoadedModel,
    settings: Mapping[str, object],
    device: torch.device,
    texts: Mapping[str, TokenWindows | None],
) -> dict[str, str]:
    """Versions, files of the model, options but for those that name files, and token ids of the texts.

    Args:
        loaded: the model.
        settings: options that were given, under the names that users type or those of a recipe.
        device: where it is computed.
        texts: by what they are for.

    Raises:
        RequestError: the files of the model are not found.
    """
    found = {f"version of {name}": version for name, version in versions().items()}
    found |= _model_files(loaded)
    named = {option_name(name): value for name, value in settings.items()}
    found |= {f"--{name}": str(value) for name, value in named.items() if name not in _SEEN_ELSEWHERE}
    found["data type of the model"] = loaded.dtype
    found["kind of device"] = device.type
    for what, windows in texts.items():
        if windows is not None:
            found[f"text of the {what} (token ids)"] = windows.record.token_ids_sha256[:16]
    return found


def _model_files(loaded: LoadedModel) -> dict[str, str]:
    """Size and time of change of the files that the model comes from."""
    source = locate(loaded.source, allow_pickle=True)
    if source.gguf:
        files = [Path(source.where) / source.gguf]
    else:
        options = {**source.options, "revision": loaded.revision}
        folder = type(source)(source.named, source.where, is_local=source.is_local, options=options).snapshot
        files = sorted({file for pattern in _WEIGHTS for file in (folder.glob(pattern) if folder else ())})
    if not files:
        raise RequestError(f"--resume: the files of model {loaded.source!r} are not found: drop it")
    return {f"file {file.name} of the model": _as_it_is(file) for file in files}


def _as_it_is(file: Path) -> str:
    status = file.stat()
    changed = datetime.fromtimestamp(status.st_mtime_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{status.st_size:,} bytes of {changed}.{status.st_mtime_ns % 10**9:09d}"
