"""Writing a model as a checkpoint that plain transformers loads."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from owl_compress.checkpoints.decilm import check_decilm, describe_decilm
from owl_compress.checkpoints.hub import quiet_transformers
from owl_compress.checkpoints.narrow import check_savable, describe_narrowed, has_narrowed_blocks
from owl_compress.checkpoints.packed import PackedCheckpoint
from owl_compress.documents.recipe import Export

logger = logging.getLogger(__name__)

GENERATION_CONFIG_NAME = "generation_config.json"


def save_checkpoint(
    model: Any,
    tokenizer: Any | None,
    folder: Path,
    *,
    packed: PackedCheckpoint | None = None,
    export: Export | None = None,
    max_shard_size: str = "50GB",
) -> tuple[str, ...]:
    """Write safetensors, configuration, generation configuration and tokenizer into the existing `folder`.

    With `packed` its tensors are written instead of the model's own. A model with narrowed blocks gets its
    widths into the configuration and a modelling file beside it; with `export` it is written for other
    software instead, see `owl_compress.checkpoints.decilm`.

    `folder` is meant to be the temporary one of `files.output_folder`, which turns a full disk into one line
    and leaves nothing behind; errors of the writer pass through here untouched. The configuration names the
    dtype that the weights have. The same model gives the same bytes. Code of a model loaded with
    trust_remote_code is copied along by transformers.

    Returns:
        Notes for the result: what was saved although transformers objects to it.

    Raises:
        RequestError: a narrowed model or an export that cannot be described; nothing is written then.
    """
    notes = []
    narrow = has_narrowed_blocks(model) and export is None
    if narrow:
        check_savable(model)
    if export is not None:
        check_decilm(model, is_packed=packed is not None)
    with quiet_transformers():
        generation = getattr(model, "generation_config", None) if model.can_generate() else None
        with (
            _plain_generation_config(model, generation),
            _described(model.config, packed),
            _left_alone(model.config),
        ):
            model.save_pretrained(
                folder,
                state_dict=packed.tensors if packed else None,
                max_shard_size=max_shard_size,
                # transformers renames the tensors of old checkpoints back only for classes of its own
                save_original_format=not narrow,
            )
        if narrow:
            describe_narrowed(model, folder)
        if export is not None:
            describe_decilm(model, folder)
        if generation is not None:
            notes += _save_generation_config(generation, folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    return tuple(notes)


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
