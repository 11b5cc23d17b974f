"""Writing a model as a checkpoint that plain transformers loads."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from owl_compress.checkpoints.code_files import drop_missing_code
from owl_compress.checkpoints.hub import quiet_transformers
from owl_compress.checkpoints.rope_names import add_older_names
from owl_compress.checkpoints.shards import write_shards
from owl_compress.checkpoints.stored_forms import StoredForm, suiting
from owl_compress.models.residence import is_streamed

logger = logging.getLogger(__name__)

_IN_ONE_FILE = "1000TB"

GENERATION_CONFIG_NAME = "generation_config.json"


@dataclass(frozen=True)
class PackedCheckpoint:
    """Tensors that stand for those of a model, all of them, and how config.json describes them.

    `original_names` as for `write_weights`; `notes` say which linears are not stored as codes, and why. Of a
    model whose blocks are not in memory they are those outside of blocks, and `of_block` makes of the tensors
    of a block what is stored of it.
    """

    tensors: dict[str, Tensor]
    quantization_config: dict[str, Any]
    original_names: bool = True
    notes: tuple[str, ...] = ()
    of_block: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict


def save_checkpoint(
    model: Any,
    tokenizer: Any | None,
    folder: Path,
    form: StoredForm | None = None,
    *,
    max_shard_size: str = "50GB",
) -> tuple[str, ...]:
    """Write the model in a `form`, with generation configuration and tokenizer, into the existing `folder`.

    By default it is the form that suits the model without codes. `folder` is meant to be the temporary one of
    `disk.output_folder`, which turns a full disk into one line and leaves nothing behind; errors of the
    writer pass through here untouched. The same model gives the same bytes. Code of a model loaded with
    trust_remote_code is copied along by transformers.

    Returns:
        Notes for the result: what was saved although transformers objects to it, or otherwise than asked.

    Raises:
        RequestError: a model that the form cannot hold; nothing is written then.
    """
    form = form or suiting(model, wants_codes=False)
    with quiet_transformers():
        notes = list(form.save(model, folder, max_shard_size=max_shard_size))
        generation = _generation_config(model)
        if generation is not None:
            notes += _save_generation_config(generation, folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    return (*notes, *drop_missing_code(folder))


def write_weights(
    model: Any,
    folder: Path,
    *,
    max_shard_size: str,
    packed: PackedCheckpoint | None = None,
    original_names: bool = True,
) -> None:
    """Write safetensors and configuration; the configuration names the dtype that the weights have.

    With `packed` its tensors are written instead of the model's own. transformers renames the tensors of old
    checkpoints back to their `original_names`, but only for classes of its own.
    """
    tensors = packed.tensors if packed else None
    if is_streamed(model):  # what lies outside its blocks goes first
        tensors = {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta}
        max_shard_size = _IN_ONE_FILE
    with (
        _plain_generation_config(model, _generation_config(model)),
        _described(model.config, packed),
        _left_alone(model.config),
    ):
        model.save_pretrained(
            folder,
            state_dict=tensors,
            max_shard_size=max_shard_size,
            save_original_format=original_names,
        )
    add_older_names(folder / "config.json")
    if is_streamed(model):
        of_block = packed.of_block if packed else None
        write_shards(model, folder, original_names=original_names, of_block=of_block)


def _generation_config(model: Any) -> Any | None:
    return getattr(model, "generation_config", None) if model.can_generate() else None


@contextmanager
def _described(config: Any, packed: PackedCheckpoint | None) -> Iterator[None]:
    """Lend the configuration the description of packed tensors; the model in memory is an ordinary one."""
    if packed is None:
        yield
        return
    config.quantization_config = packed.quantization_config
    try:
        yield
    finally:
        del config.quantization_config


@contextmanager
def _left_alone(config: Any) -> Iterator[None]:
    """Give the configuration back what `save_pretrained` writes into it on its way to the file."""
    before = {name: getattr(config, name, None) for name in ("architectures", "dtype")}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


@contextmanager
def _plain_generation_config(model: Any, generation: Any | None) -> Iterator[None]:
    """Lend the model a default generation configuration, so that its own cannot stop `save_pretrained`.

    Many published models carry settings that transformers refuses to write, such as a temperature without
    do_sample; they are what the author shipped and none of our business.
    """
    if generation is None:
        yield
        return
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = generation


def _save_generation_config(generation: Any, folder: Path) -> list[str]:
    """Write the generation configuration exactly as it is, and say so if transformers calls it invalid."""
    # compile_config may hold what JSON cannot; transformers leaves it out of its own file too.
    generation.to_json_file(folder / GENERATION_CONFIG_NAME, use_diff=True, keys_to_pop=["compile_config"])
    try:
        generation.validate(strict=True)
    except ValueError as error:
        reason = " ".join(str(error).split())
        note = f"generation_config.json is kept as the source has it, although transformers objects: {reason}"
        logger.warning(note)
        return [note]
    return []
