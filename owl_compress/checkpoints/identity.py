"""Which weights a name stands for, told before they are loaded: a commit of the hub, or a hash of files."""

import hashlib
from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache

from owl_compress.checkpoints.files import unreadable
from owl_compress.checkpoints.hub import quietly_explained
from owl_compress.checkpoints.loading import locate
from owl_compress.documents.outputs import ADAPTER_FOLDER

_KINDS = (".safetensors", ".bin", ".json", ".gguf", ".model", ".txt", ".py", ".jinja", ".tiktoken")
"""Files of a checkpoint that weights, configuration, tokenizer or code are in."""

_OURS = ("result.json", "plan.json", "report.json", "sensitivity.json")
"""What lies beside a checkpoint of ours and is not read when it is loaded."""


def checkpoint_key(source: str, *, revision: str | None = None, allow_pickle: bool = False) -> str:
    """What tells the checkpoint `source` from every other one: the same key, the same weights and tokenizer.

    Raises:
        RequestError: nothing is there, it is no whole checkpoint, or the hub cannot be reached.
    """
    found = locate(source, allow_pickle=allow_pickle)
    if not found.is_local:
        return f"hub {found.where} {_commit(found.where, source, revision)}"
    folder = Path(found.where)
    if found.gguf:
        return f"gguf {_digest([folder / found.gguf])}"
    inside = [*folder.iterdir(), *(folder / ADAPTER_FOLDER).glob("*")]
    files = sorted(one for one in inside if one.suffix in _KINDS and one.name not in _OURS)
    return f"folder {_digest([one for one in files if one.is_file()])}"


def _commit(hub_id: str, source: str, revision: str | None) -> str:
    """The commit that a branch or tag stands for, as the cache has it, or the hub."""
    with quietly_explained(source):  # the cache refuses what is no name of the hub, too
        cached = try_to_load_from_cache(hub_id, "config.json", revision=revision)
        if not isinstance(cached, str):
            cached = hf_hub_download(hub_id, "config.json", revision=revision)
    return Path(cached).parent.name


def _digest(files: list[Path]) -> str:
    """sha256 of the names and contents of `files`.

    Raises:
        RequestError: one of them cannot be read.
    """
    whole = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise unreadable(path, error) from error
        whole.update(f"{path.name} {content}\n".encode())
    return whole.hexdigest()
